"""Search space of Hydra's overrides as Optuna's distributions, and the way back."""

from typing import Any

from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)

from hydra_plugins.xray_sweepers._jobs import text_of
from xray_lightning.errors import UserError, one_line


def distribution(key: str, override: Override) -> Any:
    """Optuna's distribution of what an override may be.

    Choices stay the text that Hydra is given.

    Raises:
        UserError: Optuna takes no such range.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            log_scale = "log" in value.tags
            low: Any = value.start
            high: Any = value.end
            if "int" in value.tags or (isinstance(low, int) and isinstance(high, int)):
                return IntDistribution(int(low), int(high), log=log_scale)
            return FloatDistribution(float(low), float(high), log=log_scale)
        if isinstance(value, RangeSweep):
            values, step = sorted(value.range()), abs(value.step)
            if all(isinstance(one, int) for one in values):
                return IntDistribution(int(values[0]), int(values[-1]), step=int(step))
            return FloatDistribution(values[0], values[-1], step=step)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{key}={text_of(override)} is no search space: {one_line(error)}"
        ) from error


def suggested(trial: Any, key: str, one: Any) -> Any:
    """The trial's value of a parameter, drawn now unless it was before a kill."""
    if hasattr(one, "choices"):
        return trial.suggest_categorical(key, one.choices)
    suggest = trial.suggest_int if type(one).__name__ == "IntDistribution" else trial.suggest_float
    return suggest(key, one.low, one.high, step=one.step, log=one.log)


def as_text(value: Any) -> str:
    """A parameter as an override takes it, with no more digits than tell trials apart."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def in_grammar(value: Any) -> str:
    """A plain value as Hydra's override grammar writes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_grammar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(in_grammar, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return str(QuotedString(text=str(value), quote=Quote.single).with_quotes())
