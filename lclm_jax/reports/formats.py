"""Numbers as the text of a page, a table or an axis."""

import math
from collections.abc import Sequence
from typing import Any

from lclm_jax.evaluation.statistics import Difference, Mean
from lclm_jax.reports.records import Share, finite

UNKNOWN = "–"


def number(value: Any, form: str = ",.3g") -> str:
    """Format a number in a few characters, or a dash if it is missing or not finite.

    >>> number(0.01234), number(12345), number(float("nan"))
    ('0.0123', '12,345', '–')
    """
    known = finite(value)
    if known is None:
        return UNKNOWN
    if form == ",.3g" and 1000 <= abs(known) < 1e7:
        return f"{known:,.0f}"
    return format(known, form).replace("%", " %")


def percent(share: float | None) -> str:
    return number(share, ".1%")


def interval(share: Share) -> str:
    """Format a share with its confidence interval, as in `61.3 % (59.3–63.3)`."""
    if not share.count:
        return UNKNOWN
    return f"{percent(share.value)} ({100 * share.low:.1f}–{100 * share.high:.1f})"


def score(mean: Mean, is_share: bool = True) -> str:
    """Format a mean with its standard error; shares are in percent, as in published tables.

    Shares of 0 and 100 % have the bound of their 95 % interval in its place.

    >>> score(Mean(0.7506, 0.0123, 500)), score(Mean(9.81, 0.2, 10), is_share=False)
    ('75.1 ± 1.2', '9.81 ± 0.2')
    >>> score(Mean(1.0, 0.0, 20)), score(Mean(0.0, 0.0, 96))
    ('100.0 (≥ 83.9)', '0.0 (≤ 3.8)')
    """
    form, scale = (".1f", 100) if is_share else (".3g", 1)
    value = number(scale * mean.value, form)
    if mean.standard_error is None:
        return value
    share = mean.share_of_all_or_none if is_share else None
    if share is not None:
        sign, bound = ("≥", share.low) if share.value else ("≤", share.high)
        return f"{value} ({sign} {number(scale * bound, form)})"
    return f"{value} ± {number(scale * mean.standard_error, form)}"


def difference(value: Difference | None, is_share: bool = True) -> str:
    """Format a difference with its 95 % interval; shares are in percentage points.

    >>> difference(Difference(-0.032, -0.051, -0.013, 500))
    '-3.2 (-5.1 to -1.3)'
    """
    if value is None or not math.isfinite(value.value):
        return UNKNOWN
    form, scale = ("+.1f", 100) if is_share else ("+.3g", 1)
    text = number(scale * value.value, form)
    if value.low is None or value.high is None:
        return text
    return f"{text} ({number(scale * value.low, form)} to {number(scale * value.high, form)})"


def verdict(value: Difference | None) -> str:
    """Return a sign and a word for what a difference says.

    >>> [verdict(Difference(n, n - 0.1, n + 0.1, 9)) for n in (0.5, -0.5, 0.05)]
    ['▲ higher', '▼ lower', '≈ unclear']
    """
    if value is None or not math.isfinite(value.value):
        return UNKNOWN
    if not value.is_clear:
        return "≈ unclear"
    return "▲ higher" if value.value > 0 else "▼ lower"


def length_range(lengths: Sequence[int]) -> str:
    low, high = lengths
    return f"{low}" if low == high else f"{low} to {high}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(number: int) -> str:
    return f"{number:,}"


def byte_count(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def big_count(count: float) -> str:
    return f"{count / 1e6:.2f} million" if count >= 1e6 else f"{count:,.0f}"


def short_number(value: float) -> str:
    """Format the label of an axis in powers of 1000.

    >>> [short_number(n) for n in (0, 0.25, 1500, 128000, 2.5e6)]
    ['0', '0.25', '1.5k', '128k', '2.5M']
    """
    for power, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.4g}{unit}"
    return f"{value:.3g}"


def short_count(count: int) -> str:
    """Format a context length, in powers of 1024 if it is a multiple of 1024.

    >>> [short_count(n) for n in (96, 1024, 131072, 1048576, 1500)]
    ['96', '1k', '128k', '1M', '1.5k']
    """
    base = 1000 if count % 1024 else 1024
    for power, unit in ((2, "M"), (1, "k")):
        if count >= base**power:
            return f"{count / base**power:.3g}{unit}"
    return f"{count}"


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def plural(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"
