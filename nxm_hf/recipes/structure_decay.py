"""The recipe `structure-decay`: one pattern after another, up to the final pattern."""

from collections.abc import Sequence
from dataclasses import replace
from math import log2

from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Frames
from nxm_hf.patterns import NM, Pattern, parse
from nxm_hf.recipes.ste import ste
from nxm_hf.settings import one_of


def structure_decay(
    pattern: Pattern, schedule: str = "stepwise", frames: Sequence[str] | None = None, refresh: int = 1
) -> Masked:
    """Train as `ste` through a sequence of patterns, each for an equal share of the recipe's steps.

    Reference: Kao et al., 2022 (SDGF), https://arxiv.org/abs/2209.07617
    Relations: `ste` when there is one frame.

    Args:
        pattern: The final pattern.
        schedule: "stepwise" keeps fewer of every M: 15:16, 8:16, 4:16, 2:16, 1:16. "geometric" narrows the groups at
            one density: 8:64, 4:32, 2:16, 1:8.
        frames: A custom sequence of patterns, which ends with `pattern`; it replaces `schedule`.
        refresh: The number of steps from one mask to the next.
    """
    one_of("structure-decay", "schedule", schedule, ("stepwise", "geometric"))
    patterns = _default_frames(pattern, schedule) if frames is None else _custom_frames(pattern, frames)
    return replace(ste(pattern, refresh=refresh), pattern=Frames(patterns))


def _custom_frames(pattern: Pattern, frames: Sequence[str]) -> tuple[Pattern, ...]:
    if not isinstance(frames, (list, tuple)) or not all(isinstance(frame, (str, Pattern)) for frame in frames):
        raise ValueError(
            f"frames of structure-decay is a list of patterns; got {frames!r}. Write ['3:4', '{pattern}']."
        )
    patterns = tuple(parse(frame) for frame in frames)
    if not patterns or patterns[-1] != pattern:
        raise ValueError(
            f"frames of structure-decay must end with the pattern; got {frames!r}. Write [..., '{pattern}']."
        )
    return patterns


def _default_frames(pattern: Pattern, schedule: str) -> tuple[Pattern, ...]:
    if not isinstance(pattern, NM):
        raise ValueError(f"structure-decay makes its frames from N:M; for {pattern} give frames=[..., '{pattern}'].")
    n, m = pattern.n, pattern.m
    if schedule == "geometric":
        return tuple(NM(n * scale, m * scale) for scale in (8, 4, 2, 1))
    steps = log2(m / n)
    if not steps.is_integer():
        raise ValueError(
            f"stepwise frames halve N, so M/N must be a power of two; got {pattern}. Give frames=[..., '{pattern}']."
        )
    return tuple(NM(kept, m) for kept in dict.fromkeys([m - 1, *(m >> step for step in range(1, int(steps) + 1))]))
