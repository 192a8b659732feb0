"""The method of a part of a weight: the same method, with patterns that all processes solve together if necessary."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

from nxm_hf.layers.weight_part import WeightPart
from nxm_hf.methods import Clock, Method
from nxm_hf.methods.schedules import Schedule
from nxm_hf.patterns import Pattern


@dataclass(frozen=True)
class _OfPart:
    """A schedule of patterns for a part of a weight."""

    schedule: Schedule[Pattern]
    part: WeightPart

    def __call__(self, clock: Clock) -> Pattern:
        return self.part.pattern(self.schedule(clock))


M = TypeVar("M", bound=Method)


def method_of_part(method: M, part: WeightPart | None) -> M:
    """Return the method for a part of a weight, with the same result as the given method on the whole weight.

    Args:
        method: One of the methods of `nxm_hf.methods`.
        part: The part; None for a whole weight, whose method stays as it is.
    """
    if part is None or not is_dataclass(method):
        return method
    changes: dict[str, object] = {}
    for field in fields(method):
        value = getattr(method, field.name)
        if field.name == "method":
            changes["method"] = method_of_part(value, part)
        elif field.name == "pattern":
            changes["pattern"] = part.pattern(value) if isinstance(value, Pattern) else _OfPart(value, part)
    return replace(method, **changes)
