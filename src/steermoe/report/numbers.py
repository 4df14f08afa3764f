"""Numbers and names as the report prints them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from steermoe.units import gibibytes

MISSING = "\N{EN DASH}"
"""Printed where there is no value."""

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is there and finite."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(float(value))
    )


def number(value: Any, digits: int = 3) -> str:
    """A number with so many decimals; the minus sign is a real one."""
    if not is_number(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: Any, digits: int = 3) -> str:
    """A number with its sign."""
    text = number(value, digits)
    return f"+{text}" if is_number(value) and value > 0 and text.strip("0.") else text


def integer(value: Any) -> str:
    """A count, with thousands separated."""
    return f"{int(value):,}".replace("-", MINUS) if is_number(value) else MISSING


def percent(value: Any) -> str:
    """A share as a percentage: one decimal, but 0 % and 100 % only where that is what they are."""
    if not is_number(value):
        return MISSING
    whole = abs(value - round(value)) < 1e-9
    return number(100 * value, 0 if whole else 1) + NBSP + "%"


def corrected(metric: Mapping[str, Any]) -> str:
    """A rate without the judge's errors, or why there is none; empty where no labels were given."""
    if "num_labels_refused" not in metric:
        return ""
    if not (metric["num_labels_refused"] and metric["num_labels_answered"]):
        return "undefined without labelled refusals and labelled answers"
    if not is_number(metric.get("corrected")):
        return "undefined: the judge is no better than chance"
    ends = (percent(metric[f"corrected_ci_{end}"]) for end in ("low", "high"))
    return f"{percent(metric['corrected'])} [{', '.join(ends)}]"


def points(value: Any) -> str:
    """A difference of shares, in percentage points."""
    return _hundredfold(value) + NBSP + "points" if is_number(value) else MISSING


def _hundredfold(value: float) -> str:
    return "0" if abs(value) < 1e-9 else signed(100 * value, 1)


def p_value(value: Any) -> str:
    """A p-value."""
    if not is_number(value):
        return MISSING
    return "<" + NBSP + "0.001" if value < 0.001 else number(value, 3)


def p_of_change(metric: Mapping[str, Any]) -> str:
    """The p-value of a change; where many answers are unscored, also if all of them had gone against it."""
    worst = metric.get("worst_case_p_value")
    shown = p_value(metric.get("p_value"))
    return f"{shown}, at worst {p_value(worst)}" if is_number(worst) else shown


def nats(value: Any) -> str:
    """A divergence with four decimals; one that is smaller, but not zero, is said to be so."""
    tiny = is_number(value) and 0 < value < 0.00005
    return f"<{NBSP}0.0001" if tiny else number(value, 4)


def form_of(unit: str) -> Callable[[Any], str]:
    """How figures of a unit are printed."""
    forms: dict[str, Callable[[Any], str]] = {"share": percent, "nats": nats}
    return forms.get(unit, lambda value: number(value, 1))


def form_of_change(unit: str) -> Callable[[Any], str]:
    """How changes of figures of a unit are printed."""
    forms: dict[str, Callable[[Any], str]] = {"share": points, "nats": nats}
    return forms.get(unit, lambda value: signed(value, 1))


def duration(seconds: Any) -> str:
    """Seconds as a person says them."""
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return number(seconds, 1) + NBSP + "s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{amount}{NBSP}{unit}" for amount, unit in parts if amount)


def memory(num_bytes: Any) -> str:
    """Bytes in GiB, as everywhere; number and unit stay on one line."""
    return gibibytes(num_bytes).replace(" ", NBSP) if is_number(num_bytes) else MISSING


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 expert`, `2 experts`; the plural is given where it is not the noun and an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def model_name(model_id: str) -> str:
    """A model as the page calls it: a hub id whole, a path by its last part."""
    path = Path(model_id)
    return path.name or model_id if path.is_absolute() or model_id.startswith(".") else model_id


def words(name: str) -> str:
    """A key of `run.json` as words: `num_generated_tokens` is `generated tokens`."""
    return name.removeprefix("num_").replace("_", " ")


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 5` for 0, 1, 2, 3, 5: increasing numbers, for instance of layers."""
    spans: list[list[int]] = []
    for one in numbers:
        if spans and one == spans[-1][1] + 1:
            spans[-1][1] = one
        else:
            spans.append([one, one])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
