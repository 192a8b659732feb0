"""The recipe `gradual`: prune a little more every so often."""

from dataclasses import dataclass

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, Clock, Every
from nxm_hf.patterns import NM, Dense, Pattern, Unstructured
from nxm_hf.settings import at_least_zero


@dataclass(frozen=True)
class Cubic:
    """From a start density down to the pattern's, fast at first: d + (start - d) * (1 - progress)^3."""

    pattern: Pattern
    start: float

    def __call__(self, clock: Clock) -> Pattern:
        left = (1 - clock.progress) ** 3
        density = self.pattern.density + (self.start - self.pattern.density) * left
        if clock.progress >= 1 or density <= self.pattern.density:
            return self.pattern
        if density >= 1:
            return Dense()
        if isinstance(self.pattern, Unstructured):
            return Unstructured(density)
        kept = max(round(density * self.pattern.m), self.pattern.n)
        return Dense() if kept == self.pattern.m else NM(kept, self.pattern.m)


def gradual(pattern: Pattern, start_density: float = 1.0, every: int = 100) -> Masked:
    """Prune by magnitude every `every` steps, from `start_density` to the density of the pattern, and for good.

    Reference: Zhu and Gupta, 2017, https://arxiv.org/abs/1710.01878
    Relations: `asp` is the same in one go. For N:M the steps are a ladder: 4:4, 3:4, 2:4.
    """
    if not isinstance(pattern, (NM, Unstructured)):
        raise ValueError(
            f"gradual takes N:M or unstructured patterns; got {pattern}. Write '2:4' or 'unstructured:0.5'."
        )
    if not pattern.density <= at_least_zero("gradual", "start_density", start_density) <= 1:
        lowest = pattern.density
        raise ValueError(f"start_density of gradual is from {lowest} to 1; got {start_density!r}. Write 1.0.")
    return Masked(Cubic(pattern, float(start_density)), refresh=Every(every), freeze=ALWAYS)
