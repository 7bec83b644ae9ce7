"""The images of a data set, read for what their gray levels say."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xray_lightning.data.explore.gray import Exposure, GrayLevels, gray_levels
from xray_lightning.data.images import UnreadableImageError, decode_gray
from xray_lightning.data.in_threads import in_threads
from xray_lightning.progress import Display


@dataclass(frozen=True)
class Read:
    """The gray levels of images by their names, and why others have none."""

    levels: Mapping[str, GrayLevels]
    unreadable: Mapping[str, str]

    def of(self, exposure: Exposure) -> list[str]:
        """The images of this exposure."""
        return [name for name, one in self.levels.items() if one.exposure == exposure]

    def as_csv(self) -> str:
        """A row an image."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        titles = ("mean", "std", "padding", "inside_mean", "inside_std")
        writer.writerow(("image", *titles, "exposure", "error"))
        for name, one in self.levels.items():
            values = [f"{getattr(one, title):.4f}" for title in titles]
            writer.writerow((name, *values, one.exposure.value, ""))
        for name, error in self.unreadable.items():
            writer.writerow((name, *[""] * len(titles), "", error))
        return text.getvalue()


def read_levels(path_of: Mapping[str, str], *, jobs: int, progress: Display) -> Read:
    """Measure these images, in threads.

    Args:
        path_of: files by the images' names.
        jobs: threads.
        progress: display for the images.
    """
    levels: dict[str, GrayLevels] = {}
    unreadable: dict[str, str] = {}
    names: Sequence[str] = list(path_of)
    with progress("measuring images", len(names)) as advance:
        found = in_threads(_measured, path_of.values(), jobs=jobs)
        for name, one in zip(names, found, strict=True):
            if isinstance(one, str):
                unreadable[name] = one
            else:
                levels[name] = one
            advance(1)
    return Read(levels, unreadable)


def _measured(path: str) -> GrayLevels | str:
    """The image's levels, or why it has none."""
    try:
        return gray_levels(decode_gray(path))
    except UnreadableImageError as error:
        return str(error).removeprefix(f"{path}: ")
