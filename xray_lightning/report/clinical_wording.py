"""Wording for clinicians: predictive values, decision curves and abstention.

Positive and negative predictive values hold for the patients that they were measured on. Sentences
name the prevalence among these first, and then the value at the prevalence that the user states:
findings are often more frequent in a test set than in any clinic, which its figures do not show.
"""

from xray_lightning.evaluation.decision_curves import NOWHERE
from xray_lightning.runs.schema import DecisionCurve, FindingRow, TestMetrics
from xray_lightning.terminal import by_reason, counted, readable, with_interval

FAR = 2.0  # ratio of test to stated prevalence, or its inverse, from which on it is noted


def predictive_values(test: TestMetrics) -> list[str]:
    """Which patients PPV and NPV hold for, and how prevalences differ from those stated."""
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
    return f"{100 * share:.2g} %" if share < 0.1 else f"{share:.0%}".replace("%", " %")


def useful_range(curve: DecisionCurve) -> str:
    """The thresholds at which acting on the model is shown to beat acting on all and on none."""
    if curve.useful_from is None or curve.useful_to is None:
        return "not shown" if curve.net_benefit_ci95 else "no interval"
    if curve.useful_from == curve.useful_to:
        return f"at {_percent(curve.useful_from)}"
    return f"{_percent(curve.useful_from)} to {_percent(curve.useful_to)}"


def usefulness(test: TestMetrics) -> str:
    """The findings for which the model is shown to be worth acting on, with the thresholds."""
    curves = [
        (readable(row.finding), row.decision_curve)
        for row in test.finding_rows
        if row.decision_curve is not None
    ]
    shown = [f"{name} ({useful_range(one)})" for name, one in curves if one.useful_from is not None]
    never = [name for name, one in curves if one.undefined_reason.get("useful_from") == NOWHERE]
    said = []
    if shown:
        said.append(f"Shown to be worth acting on, by the threshold: {', '.join(shown)}.")
    if never:
        said.append(f"At no threshold shown to be worth acting on: {', '.join(never)}.")
    return " ".join(said) or "Nothing can be shown: there are no intervals."


def about_curves(test: TestMetrics) -> list[str]:
    """Notes on the decision curves: probabilities, prevalences, intervals, and missing figures."""
    curves = {row.finding: row.decision_curve for row in test.finding_rows if row.decision_curve}
    raw = [readable(finding) for finding, curve in curves.items() if curve.of == "raw"]
    of = "calibrated" if len(raw) < len(curves) else "raw"
    but = f" (of {', '.join(raw)} raw)" if raw and of == "calibrated" else ""
    return [
        f"Of {of} probabilities{but}, at the prevalences of this test set: where findings are "
        "rarer, so is the benefit.",
        "Each threshold has an interval of its own; of several together one may miss by chance.",
        *by_reason(
            (readable(finding), reason)
            for finding, curve in curves.items()
            if (reason := curve.undefined_reason.get("useful_from", NOWHERE)) != NOWHERE
        ),
    ]


def abstention(test: TestMetrics) -> str:
    """What the abstention thresholds guarantee, and how many patients they were fitted on."""
    rule = test.abstention
    if rule is None:
        return "No thresholds of abstention were fitted."
    return (
        "From its operating point on the model would say yes of a finding, below a lower threshold "
        f"no, and between them nothing. Fitted on {counted(rule.patients, 'validation patient')}, "
        f"so that of those it says no of fewer than {_percent(rule.alpha)} are missed, with "
        f"{100 * rule.confidence:g} % confidence for each finding. Of a finding that fewer than "
        f"{_percent(rule.alpha)} of patients have, that asks for nothing."
    )


def abstention_rows(test: TestMetrics) -> list[FindingRow]:
    """The findings that have a lower threshold."""
    return [row for row in test.finding_rows if row.abstention and row.abstention.low is not None]


def without_abstention(test: TestMetrics) -> list[str]:
    """Why the other findings have no lower threshold, one sentence per reason."""
    return by_reason(
        (readable(row.finding), f"no lower threshold, {reason}" if key == "low" else reason)
        for row in test.finding_rows
        if row.abstention
        for key, reason in row.abstention.undefined_reason.items()
        if key == "low" or row.abstention.low is not None
    )
