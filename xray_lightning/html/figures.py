"""matplotlib figures as PNG, and as SVG that takes the colours and font of its page."""

import io
import re
import warnings
from contextlib import AbstractContextManager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xray_lightning.errors import printable

# Okabe and Ito's palette, which colour-blind readers can tell apart; black and yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, GRID = "#333333", "#DDDDDD"  # of a PNG: dark on white paper
DOTS_PER_INCH = 150


def dress(axes: Axes, title: str) -> None:
    """Style of the PNG plots: title on the left, no box, faint horizontal lines."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    return _saved(figure, format="png", dpi=DOTS_PER_INCH)


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Glyphs that matplotlib's font lacks: boxes do in a PNG, and an SVG uses the page's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(buffer, **options)
    return buffer.getvalue()


# Placeholders in an SVG for the page's CSS colours: any that matplotlib does not use would do.
SVG_INK, MUTED, SVG_GRID, PAPER = "#fe0101", "#fe0102", "#fe0103", "#fe0104"
SERIES = tuple(f"#fe02{number:02x}" for number in range(1, 7))
_VARIABLES = {SVG_INK: "--ink", MUTED: "--muted", SVG_GRID: "--grid", PAPER: "--paper"} | {
    marker: f"--series-{number}" for number, marker in enumerate(SERIES, start=1)
}

# An inch of a figure's size is 72 units of its SVG, each shown as one pixel or more.
POINTS = 72.0
FONT_SIZE = 10.0

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "xray",  # ids that do not change from one drawing to the next
    "font.size": FONT_SIZE,
    "axes.labelpad": 2.0,
    "grid.color": SVG_GRID,
    "text.color": SVG_INK,
    "text.parse_math": False,  # a "$" in a name is no formula
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    **dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.8),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 3.0),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("xtick.minor.visible", "ytick.minor.visible"), False),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_NAMESPACE = re.compile(r"^\{.*\}")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"[\"(]#([^\")]+)")
_FONT_FAMILY = re.compile(r"\s*font-family:[^;]*;?")


def drawing() -> AbstractContextManager[None]:
    """Context manager that sets the rcParams of SVG figures: `with drawing(): ...`."""
    return matplotlib.rc_context(_STYLE)


def inline(figure: Figure, *, name: str, text: str) -> Markup:
    """The figure as an `<svg>` element without width and height, which the page sets.

    Args:
        name: unique within the page; the ids inside begin with it.
        text: what the figure shows, as text for screen readers.
    """
    saved = _saved(figure, format="svg", metadata=_NO_METADATA)
    drawn = ElementTree.fromstring(saved)
    used = set(_REFERENCE.findall(saved.decode()))
    box = drawn.attrib["viewBox"]
    svg = ElementTree.Element("svg", {"viewBox": box, "role": "img", "aria-label": printable(text)})
    svg.extend(_themed(child, name, used) for child in drawn if _tag(child) == "g")
    svg.extend(_themed(child, name, used) for child in drawn.iterfind("{*}defs[{*}clipPath]"))
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _themed(element: ElementTree.Element, name: str, used: set[str]) -> ElementTree.Element:
    """A copy without namespaces, with the page's colours and font, and ids prefixed by `name`."""
    attributes = {}
    for key, value in element.attrib.items():
        key = _NAMESPACE.sub("", key)
        if key == "id":
            if value not in used:
                continue
            value = f"{name}-{value}"
        elif key == "href":
            value = f"#{name}-{value.removeprefix('#')}"
        elif key == "clip-path":
            value = value.replace("#", f"#{name}-")
        elif key == "style":
            for marker, variable in _VARIABLES.items():
                value = value.replace(marker, f"var({variable})")
            value = _FONT_FAMILY.sub("", value)
        elif key != "class":
            value = _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.2f}", value)
            value = " ".join(value.split())
        attributes[key] = value
    copy = ElementTree.Element(_tag(element), attributes)
    copy.text = element.text if element.text and element.text.strip() else None
    copy.extend(_themed(child, name, used) for child in element)
    return copy


def _tag(element: ElementTree.Element) -> str:
    return _NAMESPACE.sub("", element.tag)
