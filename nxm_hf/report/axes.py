"""Axes: from numbers to places on paper, and which numbers to write beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A range of numbers along a stretch of paper."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (math.log10(x) for x in (self.low, self.high, value)) if self.logarithmic else (
            self.low, self.high, value
        )  # fmt: skip
        return round(self.begin + (value - low) / (high - low) * (self.end - self.begin), 2)

    @property
    def ticks(self) -> list[float]:
        """Round numbers within the range."""
        if self.logarithmic and len(marks := _powers(self.low, self.high)) >= 2:
            return marks
        first = math.ceil(self.low / self.step - 1e-9)
        return [count * self.step for count in range(first, math.floor(self.high / self.step + 1e-9) + 1)]

    @property
    def step(self) -> float:
        """The round number between two ticks, of which there are at most six."""
        span, most = self.high - self.low, 6
        power = 10.0 ** math.floor(math.log10(span / most))
        return next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most)


def fitted(values: Sequence[float], begin: float, end: float, zero: bool = False, logarithmic: bool = False) -> Axis:
    """An axis that holds these values with a little room, from zero on if `zero`; no room beyond shares of 0 and 1."""
    low, high = min(values), max(values)
    if logarithmic:
        return Axis(low / 1.2, high * 1.2, begin, end, True)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return Axis(0 if zero or low == 0 else low - room, 1 if high == 1 else high + room, begin, end)


def number(value: float, step: float = 0.0) -> str:
    """A number as it stands at a tick, with the digits that tell it from the next, a step away.

    >>> [number(x) for x in (0, 0.30000000000000004, 1500.0, 25000, 2e-05, 3e6)]
    ['0', '0.3', '1500', '25k', '2e-5', '3M']
    >>> number(0.99994, 2e-5), number(1, 2e-5), number(500, 100)
    ('0.99994', '1', '500')
    """
    for size, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= size:
            return f"{value / unit:.4g}{letter}"
    digits = math.ceil(math.log10(abs(value) / step)) + 1 if value and step else 0
    mantissa, e, exponent = f"{value:.{max(digits, 4)}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def _powers(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        marks = [factor * 10.0**e for e in exponents for factor in factors if low <= factor * 10.0**e <= high]
        if len(marks) >= 3:
            break
    return marks[:: math.ceil(len(marks) / 7)] if marks else []
