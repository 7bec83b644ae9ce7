"""Wording of what clinicians ask for: what a call is worth, and to whom.

Positive and negative predictive values are those of the patients that they were measured on. Each
sentence names these patients first, and then what would be so of those whom the user states: a
test set is often richer in findings than any clinic, and nothing in its figures shows that.
"""

from xray_lightning.runs.schema import TestMetrics
from xray_lightning.terminal import readable, with_interval

FAR = 2.0  # times as frequent as stated, or the other way round: another set of patients


def predictive_values(test: TestMetrics) -> list[str]:
    """Of which patients PPV and NPV are, and how far the test set is from what is stated."""
    known = [row for row in test.finding_rows if row.ppv is not None and row.prevalence is not None]
    if not known:
        return []
    stated = [row for row in known if row.ppv_at_stated_prevalence is not None]
    row = max(stated or known, key=lambda one: one.prevalence or 0.0)
    none = test.images_without_finding
    share = "" if none is None else f"; {_percent(none / test.images)} show no finding at all"
    said = (
        f"PPV is of this test set, in which {_percent(row.prevalence or 0.0)} of images show "
        f"{readable(row.finding)}{share}"
    )
    if not stated:
        return [
            f"{said}. Where a finding is rarer, PPV is lower and NPV higher: state the prevalence "
            "of your patients (evaluation.prevalence, or xray evaluate --prevalence)."
        ]
    there = with_interval(row.ppv_at_stated_prevalence, row.ppv_at_stated_prevalence_ci95)
    share = _percent(row.stated_prevalence or 0.0)
    return [f"{said}. Of {readable(row.finding)} at {share} it would be {there}.", *_enriched(test)]


def _enriched(test: TestMetrics) -> list[str]:
    """The sentences for findings that are far more, or far less, frequent than is stated."""
    times = {
        readable(row.finding): row.prevalence / row.stated_prevalence
        for row in test.finding_rows
        if row.prevalence and row.stated_prevalence
    }
    more = [f"{name} ({ratio:.1f} times)" for name, ratio in times.items() if ratio >= FAR]
    less = [name for name, ratio in times.items() if ratio <= 1 / FAR]
    said = []
    if more:
        said.append(f"This test set is enriched: more frequent than stated are {', '.join(more)}.")
    if less:
        said.append(f"At most half as frequent as stated: {', '.join(less)}.")
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
