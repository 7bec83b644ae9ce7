"""`xray explain`: files, and where a model saw findings in them, as a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xray_lightning.deploy.explain.boxes_of import boxes_of
from xray_lightning.deploy.explain.explained import Choice, explain_each
from xray_lightning.deploy.explain.folder import TABLE, Writer, check_new, new_folder
from xray_lightning.deploy.explain.gallery import PAGE, Gallery
from xray_lightning.deploy.explain.maps import Explainer
from xray_lightning.deploy.inputs import find_inputs
from xray_lightning.errors import UserError
from xray_lightning.progress import Display, unseen


@dataclass(frozen=True)
class Done:
    """What was done: images, of which unreadable, maps, and those with boxes."""

    images: int
    unreadable: int
    maps: int
    boxed: int
    page: Path | None

    def summary(self) -> str:
        """All counts in one line."""
        boxed = f", {self.boxed:,} with boxes" if self.boxed else ""
        return f"{self.images:,} images, {self.unreadable:,} unreadable, {self.maps:,} maps{boxed}"


def explain(
    checkpoint: Path,
    arguments: Sequence[str],
    out: Path,
    *,
    method: str,
    choice: Choice,
    html: bool = False,
    images: Path | None = None,
    boxes: Path | None = None,
    device: str = "auto",
    progress: Display = unseen,
) -> Done:
    """Write overlays, maps and a table of files, and a gallery of them.

    Args:
        checkpoint: a .ckpt file.
        arguments: files, folders, patterns or CSVs; see `inputs.find_inputs`.
        out: a new or an empty folder.
        method: a key of `maps.METHODS`.
        choice: the findings.
        html: whether to write the gallery.
        images: folder of a CSV's images; None for the CSV's own.
        boxes: a list of boxes; None for the one that lies beside the images.
        device: `auto`, `cpu` or `cuda`.
        progress: display for the images.

    Raises:
        UserError: nothing to explain, a model that cannot be read, a finding that it does not
            know, or a place that cannot be written to.
        RunFailedError: an answer that is no number, or a full disk; no folder is left.
    """
    check_new(out)
    paths = find_inputs(arguments, images=images).paths
    explainer = Explainer.load(checkpoint, method=method, device=device)
    choice.check(explainer.findings)
    boxes_by_path = boxes_of(paths, file=boxes)
    if boxes is not None and not boxes_by_path:
        raise UserError(f"--boxes {boxes}: none of its boxes is of these images")
    gallery = Gallery(explainer.model, checkpoint=checkpoint, method=method)
    unreadable = maps = boxed = 0
    with new_folder(out) as folder, (folder / TABLE).open("w", encoding="utf-8") as table:
        writer = Writer(folder, table, explainer.model)
        with progress("explaining", len(paths)) as advance:
            for one in explain_each(explainer, paths, choice, boxes=boxes_by_path):
                writer.write(one)
                if html:
                    gallery.add(one)
                unreadable += one.gray is None
                boxed += bool(one.boxes)
                maps += len(one.maps)
                advance(1)
        if html:
            (folder / PAGE).write_text(gallery.page(), encoding="utf-8")
    return Done(len(paths), unreadable, maps, boxed, out / PAGE if html else None)
