"""Localisation on a terminal."""

from rich.console import Console
from rich.table import Table

from xray_lightning.deploy.explain.localisation import LEVELS, MACRO, Localisation, Score


def show_localisation(found: Localisation, console: Console, *, title: str) -> None:
    """Print the pointing game by finding, and the overlaps of all findings together."""
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    table = Table(title="Pointing game: largest value in a box", title_justify="left")
    table.add_column("finding")
    for heading in ("images", "share", "95 % interval", "chance", "another patient"):
        table.add_column(heading, justify="right")
    for name, score in found.pointing.items():
        if name == MACRO:
            table.add_section()
        images = "" if name == MACRO else f"{found.images[name]:,}"
        label = f"macro over {len(found.images)}" if name == MACRO else name.replace("_", " ")
        table.add_row(label, images, *_cells(score))
    console.print(table)
    overlaps = Table(title="Overlap with the boxes (IoU), macro", title_justify="left")
    overlaps.add_column("marked, of the map's largest value")
    for heading in ("mean IoU", "95 % interval", "chance", "another patient"):
        overlaps.add_column(heading, justify="right")
    for level in LEVELS:
        overlaps.add_row(f"{level:.0%} and more", *_cells(found.overlap[level][MACRO]))
    console.print(overlaps)
    lines = [
        "Chance: a point, or as many pixels as the map marks, anywhere in the image.",
        "Another patient: the map of another patient with the finding, on the same boxes.",
    ]
    if found.unreadable:
        lines.append(f"Images with boxes that cannot be read, left out: {len(found.unreadable):,}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(score: Score) -> tuple[str, ...]:
    return (
        f"{score.value:.3f}",
        "-" if score.ci95 is None else f"{score.ci95[0]:.3f} to {score.ci95[1]:.3f}",
        f"{score.chance:.3f}",
        "-" if score.another != score.another else f"{score.another:.3f}",
    )
