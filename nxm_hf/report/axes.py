"""Axes: map numbers to positions on paper, and choose ticks and their labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_STEPS = 6  # between the ticks of a linear axis


@dataclass(frozen=True)
class Axis:
    """A range of numbers along a line of a drawing.

    Args:
        low: The smallest number.
        high: The largest number.
        begin: The position of `low`.
        end: The position of `high`.
        logarithmic: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def position(self, value: float) -> float:
        """Return the position of a number.

        Args:
            value: A number, usually between `low` and `high`.

        Example:
            >>> Axis(0, 10, 100, 200).position(2.5)
            125.0
        """
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return round(self.begin + (value - low) / (high - low) * (self.end - self.begin), 2)

    @property
    def ticks(self) -> list[float]:
        """Return round numbers within the range."""
        if self.logarithmic and len(powers := _powers(self.low, self.high)) >= 2:
            return powers
        first = math.ceil(self.low / self.step - 1e-9)
        return [count * self.step for count in range(first, math.floor(self.high / self.step + 1e-9) + 1)]

    @property
    def step(self) -> float:
        """Return the round number between two ticks of a linear axis."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / MAX_STEPS))
        return next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= MAX_STEPS)


def fit_axis(
    values: Sequence[float], begin: float, end: float, from_zero: bool = False, logarithmic: bool = False
) -> Axis:
    """Return an axis that holds all values with a small margin.

    Args:
        values: The numbers to be drawn.
        begin: The position of the smallest number.
        end: The position of the largest number.
        from_zero: Whether the axis starts at 0. It also does if the smallest value is 0.
        logarithmic: Whether equal distances are equal ratios; all values must be positive.

    Returns:
        The axis. A largest value of 1 gets no margin, because it usually is a share.
    """
    low, high = min(values), max(values)
    if logarithmic:
        return Axis(low / 1.2, high * 1.2, begin, end, True)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return Axis(0 if from_zero or low == 0 else low - margin, 1 if high == 1 else high + margin, begin, end)


def tick_label(value: float, step: float = 0.0) -> str:
    """Return the text of a number at a tick.

    Args:
        value: The number.
        step: The distance to the next tick; the text has enough digits to tell the two apart.

    Example:
        >>> [tick_label(value) for value in (0, 0.30000000000000004, 1500.0, 25000, 2e-05, 3e6)]
        ['0', '0.3', '1500', '25k', '2e-5', '3M']
        >>> tick_label(0.99994, 2e-5), tick_label(1, 2e-5), tick_label(500, 100)
        ('0.99994', '1', '500')
    """
    for smallest, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= smallest:
            return f"{value / unit:.4g}{letter}"
    digits = math.ceil(math.log10(abs(value) / step)) + 1 if value and step else 0
    mantissa, e, exponent = f"{value:.{max(digits, 4)}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def _powers(low: float, high: float) -> list[float]:
    """Return powers of ten within a range, with multiples between them if there are fewer than three."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        numbers = [factor * 10.0**e for e in exponents for factor in factors if low <= factor * 10.0**e <= high]
        if len(numbers) >= 3:
            break
    return numbers[:: math.ceil(len(numbers) / 7)] if numbers else []
