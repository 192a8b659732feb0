"""The recipe `gradual`: prune in many small steps."""

from dataclasses import dataclass

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, Clock, Every
from nxm_hf.patterns import NM, Dense, Pattern, Unstructured
from nxm_hf.settings import at_least_one, at_least_zero


@dataclass(frozen=True)
class Cubic:
    """A pattern whose density falls from `start` to that of `pattern`, fast at first.

    The density is d + (start - d) * (1 - progress)^3, with d the density of `pattern`.
    """

    pattern: NM | Unstructured
    start: float

    def __call__(self, clock: Clock) -> Pattern:
        remaining = (1 - clock.progress) ** 3
        density = self.pattern.density + (self.start - self.pattern.density) * remaining
        if clock.progress >= 1 or density <= self.pattern.density:
            return self.pattern
        if density >= 1:
            return Dense()
        if isinstance(self.pattern, Unstructured):
            return Unstructured(density)
        kept = max(round(density * self.pattern.m), self.pattern.n)
        return Dense() if kept == self.pattern.m else NM(kept, self.pattern.m)


def gradual(pattern: Pattern, start_density: float = 1.0, every: int = 100) -> Masked:
    """Prune by magnitude every `every` steps, from `start_density` to the pattern's density; pruned weights stay zero.

    Reference: Zhu and Gupta, 2017, https://arxiv.org/abs/1710.01878
    Relations: `asp` prunes in one step. N:M patterns go through a sequence such as 4:4, 3:4, 2:4.

    Args:
        pattern: The final pattern, N:M or unstructured.
        start_density: The density at the first step.
        every: The number of steps from one pruning to the next.

    Raises:
        ValueError: If the pattern is of another form, or `start_density` is below its density or above 1.
    """
    if not isinstance(pattern, (NM, Unstructured)):
        raise ValueError(
            f"gradual takes N:M or unstructured patterns; got {pattern}. Write '2:4' or 'unstructured:0.5'."
        )
    if not pattern.density <= at_least_zero("gradual", "start_density", start_density) <= 1:
        lowest = pattern.density
        raise ValueError(f"start_density of gradual is from {lowest} to 1; got {start_density!r}. Write 1.0.")
    refresh = Every(at_least_one("gradual", "every", every, example=100))
    return Masked(Cubic(pattern, float(start_density)), refresh=refresh, freeze=ALWAYS)
