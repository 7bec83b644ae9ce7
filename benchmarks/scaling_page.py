"""Tables and figure of docs/scaling.md, made from the scaling benchmark's JSON."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.scaling_model import (
    CLUSTERS,
    DATASETS,
    GOYAL_BATCH,
    GPU_COUNTS,
    Fit,
    most_gpus,
    on_paper,
    scaled_rate,
    training_hours,
)
from xray_lightning.errors import UserError
from xray_lightning.files import write_atomically
from xray_lightning.html.figures import SERIES, drawing, inline

Content = Mapping[str, Any]
Table = dict[str, Any]
GPU_BATCH = 64  # images a GPU, on paper
# From the page's references: number of GPUs, and each GPU's rate as a share of one GPU's alone.
PUBLISHED = {
    "8 A100, AMP (NVIDIA DeepLearningExamples)": (8, 0.84),
    "8 A100, TF32 (the same)": (8, 0.965),
    "32 V100, FP32, InfiniBand (DLPerf)": (32, 0.93),
    "32 V100, AMP, InfiniBand (DLPerf)": (32, 0.88),
    "512 GPUs (Horovod)": (512, 0.90),
}
# The colours that a report's page defines for its figures, for an SVG outside such a page.
STYLE = """
svg{--ink:#222;--muted:#555;--grid:#ddd;--series-1:#0072b2;--series-2:#c44e00;--series-3:#007a5a}
text{font-family:system-ui,sans-serif}
@media(prefers-color-scheme:dark){svg{--ink:#eee;--muted:#bbb;--grid:#444;--series-1:#56b4e9;
--series-2:#f08c3c;--series-3:#2fc49a}}
"""


def link_name(link: float | None) -> str:
    return "not limited" if link is None else f"{link:g} Mbit/s"


def times(visits: Sequence[Content], kind: str, **wanted: Any) -> list[float]:
    """Seconds of every repeat, over all visits whose keys have the `wanted` values."""
    own = (one for one in visits if all(one[key] == value for key, value in wanted.items()))
    return [seconds for visit in own for seconds in visit["seconds"].get(kind, ())]


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds < 10 else f"{1000 * seconds:,.0f}"


def step_rows(content: Content) -> list[list[str]]:
    rows = []
    for point in content["points"]:
        compressed = point["bytes"] < full_bytes(content, point["network"])
        own = times(
            content["visits"],
            "step",
            **{key: point[key] for key in ("network", "ranks", "batch", "link")},
            compression="bf16" if compressed else None,
        )
        exposed = point["step"] - point["compute"]
        error = f"{100 * (point['predicted'] / point['step'] - 1):+.0f} %"
        rows.append(
            [
                point["network"] + (", bf16 gradients" if compressed else ""),
                str(point["batch"]),
                link_name(point["link"]),
                *(milliseconds(point[key]) for key in ("compute", "reduce")),
                milliseconds(max(0.0, exposed)),
                f"{milliseconds(point['step'])} ({milliseconds(min(own))} to "
                f"{milliseconds(max(own))})",
                f"{milliseconds(point['predicted'])} ({error})"
                if point["seen"]
                else f"**{milliseconds(point['predicted'])} ({error})**",
            ]
        )
    return rows


def full_bytes(content: Content, network: str) -> float:
    return max(float(one["bytes"]) for one in content["points"] if one["network"] == network)


STEP_COLUMNS = [
    *("network", "images a rank", "link", "compute ms", "reduce alone ms", "waited for ms"),
    *("step ms (lowest to highest)", "predicted ms (error)"),
]


def summary_table(content: Content) -> Table:
    """The JSON's table, for benchmarks/README.md."""
    settings = content["settings"]
    return {
        "title": f"Scaling: {settings['ranks']} ranks of one thread, images of "
        f"{settings['side']} px",
        "columns": STEP_COLUMNS,
        "rows": step_rows(content),
        "notes": [
            f"Rounds: {settings['rounds']}; every round goes through all settings. Medians over "
            "all repeats. Bold: not seen by the fit. docs/scaling.md says what each column is.",
            *scaling_notes(content),
        ],
    }


def scaling_notes(content: Content) -> list[str]:
    return [
        f"{network}, {kind}: {value:.2f} of {content['settings']['ranks']} times one rank's rate."
        for network, kind, value in scaling(content)
    ]


def scaling(content: Content) -> list[tuple[str, str, float]]:
    """Scaling efficiency without a limit of the link: strong (the same global batch) and weak (the
    same batch a rank)."""
    ranks, visits = content["settings"]["ranks"], content["visits"]
    batch = content["settings"]["batches"][-1]
    found = []
    for network in ("thin", "resnet18"):
        plain = {"network": network, "compression": None, "threads": 1}
        several = times(visits, "step", ranks=ranks, batch=batch, link=None, **plain)
        for kind, alone in (("strong", batch * ranks), ("weak", batch)):
            one = times(visits, "compute", ranks=1, batch=alone, **plain)
            if one and several:
                rate = (batch * ranks / median(several)) / (alone / median(one))
                found.append((network, kind, rate / ranks))
    return found


def scaling_table(content: Content) -> Table:
    """Images/s of one rank, of one with as many threads as ranks, and of all ranks."""
    ranks, visits = content["settings"]["ranks"], content["visits"]
    batches = content["settings"]["batches"]
    batch = batches[-1]
    rows = []
    for network in ("thin", "resnet18"):
        plain = {"network": network, "compression": None}
        arms: list[tuple[str, str, dict[str, Any]]] = [
            (f"1 rank, {batch} images", "compute", {"ranks": 1, "batch": batch, "threads": 1}),
            (
                f"1 rank, {batch * ranks} images",
                "compute",
                {"ranks": 1, "batch": batch * ranks, "threads": 1},
            ),
            (
                f"1 rank of {ranks} threads, {batch} images",
                "compute",
                {"ranks": 1, "batch": batch, "threads": ranks},
            ),
            (
                f"{ranks} ranks, {batch} images each",
                "step",
                {"ranks": ranks, "batch": batch, "threads": 1, "link": None},
            ),
        ]
        for name, kind, wanted in arms:
            own = times(visits, kind, **plain, **wanted)
            if own:
                images = wanted["batch"] * wanted["ranks"]
                rates = [images / seconds for seconds in own]
                spread = f"{min(rates):.0f} to {max(rates):.0f}"
                rows.append([network, name, f"{images / median(own):.0f}", spread])
    columns = ["network", "who trains", "images/s", "lowest to highest"]
    return {"columns": columns, "rows": rows}


def steps_table(content: Content) -> Table:
    return {"columns": STEP_COLUMNS, "rows": step_rows(content)}


def fit_table(content: Content) -> Table:
    found = content["fit"]
    rows = [
        [f"compute, {name}", f"{1000 * step:.1f} ms a step and {1000 * image:.2f} ms an image"]
        for name, (step, image) in sorted(found["compute"].items())
    ]
    unseen = [abs(error) for error in content["errors"]["unseen"]]
    seen = [abs(error) for error in content["errors"]["seen"]]
    rows += [
        ["latency of a reduction", f"{1000 * found['latency']:.1f} ms"],
        ["bandwidth of the ranks themselves", f"{found['rank_bandwidth'] / 1e9:.2f} GB/s"],
        ["bytes on a link for each byte of gradients", f"{found['overhead']:.2f}"],
        ["share of the reduction that hides behind the computation", f"{found['overlap']:.2f}"],
        [
            f"error on the {len(seen)} points of the fit",
            f"median {100 * median(seen):.0f} %, at most {100 * max(seen):.0f} %",
        ],
        [
            f"**error on the {len(unseen)} points that it did not see**",
            f"**median {100 * median(unseen):.0f} %, at most {100 * max(unseen):.0f} %**",
        ],
    ]
    return {"columns": ["constant", "fitted"], "rows": rows}


def paper_table(content: Content) -> Table:
    """Estimated efficiency of each cluster, from no overlap to the most that is possible."""
    rows = []
    for gpus in GPU_COUNTS[1:]:
        row = [f"{gpus:,}", f"{gpus * GPU_BATCH:,}"]
        for cluster in CLUSTERS:
            at = on_paper(cluster, gpus, batch=GPU_BATCH)
            row.append(f"{100 * at['worst']:.0f} to {100 * at['best']:.0f} %")
        at = on_paper(CLUSTERS[1], gpus, batch=GPU_BATCH, value_bytes=2)
        rows.append([*row, f"{100 * at['worst']:.0f} to {100 * at['best']:.0f} %"])
    names = [cluster.name for cluster in CLUSTERS]
    columns = ["GPUs", "global batch", *names, f"{names[1]}, bf16 gradients"]
    return {"columns": columns, "rows": rows}


def training_table(content: Content) -> Table:
    """Estimated hours, and whether the global batch is within `GOYAL_BATCH`."""
    rows = []
    for gpus in GPU_COUNTS:
        total = gpus * GPU_BATCH
        row = [f"{gpus:,}", f"{total:,}", f"{scaled_rate(total):.2f}"]
        for images in DATASETS.values():
            at = training_hours(CLUSTERS[0], gpus, batch=GPU_BATCH, images=images)
            row.append(f"{at['steps_an_epoch']:,.0f} of {at['steps']:,.0f}; {clock(at['hours'])}")
        rows.append([*row, "yes" if total <= GOYAL_BATCH else "**no**"])
    names = [f"{name}: steps an epoch, of all; time" for name in DATASETS]
    columns = ["GPUs", "global batch", "rate of SGD", *names, f"at most {GOYAL_BATCH:,}"]
    return {"columns": columns, "rows": rows}


def clock(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"


def limit_table(content: Content) -> Table:
    """How many GPUs a global batch of `GOYAL_BATCH` suffices for, by images a GPU."""
    rows = []
    for batch in (8, 16, 32, 64, 128, 256):
        gpus = most_gpus(batch)
        at = on_paper(CLUSTERS[0], gpus, batch=batch)
        hours = [
            training_hours(CLUSTERS[0], gpus, batch=batch, images=images)["hours"]
            for images in DATASETS.values()
        ]
        share = f"{100 * at['worst']:.0f} to {100 * at['best']:.0f} %"
        rows.append([str(batch), f"{gpus:,}", share, *map(clock, hours)])
    columns = ["images a GPU", f"GPUs at {GOYAL_BATCH:,}", "efficiency", *DATASETS]
    return {"columns": columns, "rows": rows}


def published_table(content: Content) -> Table:
    rows = []
    for name, (gpus, share) in PUBLISHED.items():
        at = on_paper(CLUSTERS[0], gpus, batch=GPU_BATCH)
        ours = f"{100 * at['worst']:.0f} to {100 * at['best']:.0f} %"
        rows.append([name, f"{100 * share:.1f} %".replace(".0", ""), ours])
    return {"columns": ["published", "efficiency", "the formula, A100"], "rows": rows}


SECTIONS: dict[str, Callable[[Content], Table]] = {
    "scaling": scaling_table,
    "steps": steps_table,
    "fit": fit_table,
    "paper": paper_table,
    "published": published_table,
    "training": training_table,
    "limit": limit_table,
}


def markdown(table: Table) -> str:
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def with_tables(text: str, content: Content) -> str:
    """The page with each table in its place, between `<!-- NAME -->` and `<!-- end -->`.

    Raises:
        UserError: a table's pair of comments is missing, or its first one is repeated.
    """
    for name, table in SECTIONS.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        if text.count(start) != 1 or end not in text.partition(start)[2]:
            raise UserError(f"the page needs one place {start.strip()} ... {end}")
        before, _, after = text.partition(start)
        rest = after[after.index(end) :]
        text = f"{before}{start}\n{markdown(table(content))}\n\n{rest}"
    return text


def write_page(path: Path, content: Content) -> None:
    """Put the tables into the page, and the figure beside it as `.svg`."""
    write_atomically(path, with_tables(path.read_text(encoding="utf-8"), content))
    write_atomically(path.with_suffix(".svg"), figure(content))


def figure(content: Content) -> str:
    """An SVG of measured and predicted step times by link, and the estimated efficiency of GPUs."""
    with drawing():
        made = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = made.subplots(1, 2)
        _draw_steps(left, content)
        _draw_paper(right)
        text = "Left: step time by link, measured and predicted. Right: efficiency on paper."
        drawn = str(inline(made, name="scaling", text=text))
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    start = drawn.index(">") + 1
    opened = drawn[:start].replace("<svg ", head, 1)
    return f"{opened}<style>{STYLE}</style>{drawn[start:]}\n"


def _draw_steps(axes: Axes, content: Content) -> None:
    fitted = Fit(**content["fit"])
    unseen = content["settings"]["batches"][-1]
    fastest = 10 * max(content["settings"]["links"], default=1000)
    for number, network in enumerate(("thin", "resnet18")):
        size = full_bytes(content, network)
        own = [
            one
            for one in content["points"]
            if (one["network"], one["batch"], one["bytes"]) == (network, unseen, size)
        ]
        links = [one["link"] or fastest for one in own]
        compute = fitted.computing(network, unseen)
        grid = [10 * (fastest / 10) ** (step / 60) for step in range(61)]
        curve = []
        for link in grid:
            reduce = fitted.reducing(size, ranks=content["settings"]["ranks"], link=link)
            curve.append(compute + reduce - fitted.overlap * min(reduce, compute))
        axes.plot(grid, curve, color=SERIES[number], label=f"{network}, predicted")
        axes.plot(
            links,
            [one["step"] for one in own],
            linestyle="none",
            marker="o",
            color=SERIES[number],
            label=f"{network}, measured",
        )
    axes.set(xscale="log", yscale="log", xlabel="link in Mbit/s")
    limits = sorted(content["settings"]["links"])
    axes.set_xticks([*limits, fastest], [*(f"{link:g}" for link in limits), "not limited"])
    axes.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
    axes.set_ylabel(f"seconds a step, {unseen} images a rank")
    axes.set_title("Two ranks: measured and predicted", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8)


def _draw_paper(axes: Axes) -> None:
    for number, cluster in enumerate(CLUSTERS):
        steps = [on_paper(cluster, gpus, batch=GPU_BATCH) for gpus in GPU_COUNTS]
        best, worst = ([100 * at[key] for at in steps] for key in ("best", "worst"))
        axes.fill_between(GPU_COUNTS, worst, best, color=SERIES[number], alpha=0.15, linewidth=0)
        axes.plot(GPU_COUNTS, worst, color=SERIES[number], label=cluster.name)
    counts, shares = zip(*PUBLISHED.values(), strict=True)
    axes.plot(
        counts,
        [100 * share for share in shares],
        linestyle="none",
        marker="x",
        color="#fe0101",
        label="published, other GPUs",
    )
    axes.set(xscale="log", xlabel="GPUs", ylabel="efficiency in %", ylim=(0, 105))
    axes.set_xticks(GPU_COUNTS, [str(count) for count in GPU_COUNTS])
    axes.set_title(f"ResNet50, {GPU_BATCH} images a GPU: on paper", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
