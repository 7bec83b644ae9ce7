"""The sentences below the tables: what keeps a figure from being what it seems."""

from collections.abc import Sequence

from xray_lightning.evaluation.record import Run, TestMetrics

NO_BETTER = "label accuracy is no better than that of a model that always answers 'no finding'"


def label_of(run: Run) -> str:
    """How notes and figures call a run: its row of the paper, or its name."""
    return f"Row {run.paper_row}" if run.paper_row else run.name


def state(run: Run) -> str:
    """ "skipped: needs CUDA" in full, as it is short; of others the status, with a note below."""
    return _state_and_reason(run) if run.status == "skipped" else run.status


def _state_and_reason(run: Run) -> str:
    reason = (run.reason or "").removeprefix(f"{run.status}: ").rstrip(".")
    return f"{run.status}: {reason}" if reason else run.status


def state_notes(runs: Sequence[Run]) -> list[str]:
    said = [(run, f" {_state_and_reason(run)}.") for run in runs if run.status != "finished"]
    return grouped(said)


def baseline_note(runs: Sequence[Run]) -> list[str]:
    """The sentence for runs whose label accuracy says nothing, or no sentence."""
    said = f": {NO_BETTER}."
    return grouped([(run, said) for run in runs if run.test and not beats_baseline(run.test)])


def beats_baseline(test: TestMetrics) -> bool:
    """Whether label accuracy is above that of always answering "no finding", if both are known."""
    if test.label_accuracy is None or test.always_negative is None:
        return True  # nothing to say
    # Two ways to sum the same labels may differ in the last bit; one label makes more than that.
    return test.label_accuracy > test.always_negative + 1e-12


def data_notes(runs: Sequence[Run], *, beside_paper: bool = True) -> list[str]:
    """What to know of the data before comparing: another source, several splits, leaks, drops."""
    notes = _source_notes(runs) if beside_paper else []
    if len({r.split_sha256 for r in runs if r.split_sha256}) > 1:
        notes.append(
            "These runs do not share one split (split_sha256 differs): compare only within a split."
        )
    said = []
    for run in runs:
        for pair, patients in run.overlap.items():
            leak = f": {patients} patients are on both sides of {pair}, which flatters the figures."
            said.append((run, leak))
        if run.dropped:
            counts = ", ".join(f"{count} x {reason}" for reason, count in run.dropped.items())
            said.append((run, f": counted while reading: {counts}."))
        if run.test and run.test.auroc_findings < len(run.test.per_finding):
            count = f"{run.test.auroc_findings} of {len(run.test.per_finding)}"
            said.append((run, f": macro AUROC over the {count} findings that have one."))
    return notes + grouped(said)


def _source_notes(runs: Sequence[Run]) -> list[str]:
    sources = sorted({f"{run.data}, split {run.split}" for run in runs if run.data})
    images = sorted({run.test.images for run in runs if run.test})
    tested = f", {' / '.join(map(str, images))} test images" if images else ""
    notes = [f"Ours: {'; '.join(sources)}{tested}."] if sources else []
    if any(run.data not in ("ai4m", "") for run in runs):
        notes.append("Ours are other images than the paper's: do not compare the accuracies.")
    return notes


def grouped(said: Sequence[tuple[Run, str]]) -> list[str]:
    """One sentence for all runs of which the same is said: "Row 2 and Row 3 skipped: ..."."""
    labels: dict[str, dict[str, None]] = {}  # a dict of dicts keeps order and drops repeats
    for run, sentence in said:
        labels.setdefault(sentence, {})[label_of(run)] = None
    return [_listed(list(names)) + sentence for sentence, names in labels.items()]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
