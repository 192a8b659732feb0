"""A solver as the catalogue lists it: the function, and what the choice between several needs to know of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WORTH: float = 2**16  # weights: below, torch is quick enough, and tiny models need not wait for a compiler


def worth(tensor: Tensor) -> bool:
    """Whether a tensor is large enough for compiled kernels."""
    return tensor.numel() >= WORTH


@contextmanager
def reference_only() -> Iterator[None]:
    """Within it, all masks come from torch: to compare the two."""
    global WORTH
    before, WORTH = WORTH, float("inf")
    try:
        yield
    finally:
        WORTH = before


def anything(scores: Tensor, pattern: Any) -> bool:
    """The answer of a solver that suits all scores."""
    return True


@dataclass(frozen=True)
class Solver:
    """Called as `solver(scores, pattern)`, it returns a new mask.

    `one`    does that for one tensor.
    `suits`  says, from scores and pattern, whether this solver is right here and worth it: it looks at device, dtype,
             shape and what is installed, never at values.
    `many`   `many(scores, pattern, masks)` writes the masks of a whole list in one go. It is asked for tensors that it
             suits, none of them empty, and its masks are contiguous. Without it, one is done after the other.
    """

    one: Callable[[Tensor, Any], Tensor]
    suits: Callable[[Tensor, Any], bool] = anything
    many: Callable[[Sequence[Tensor], Any, Sequence[Tensor]], None] | None = None

    @property
    def __name__(self) -> str:
        return self.one.__name__

    def __call__(self, scores: Tensor, pattern: Any) -> Tensor:
        return self.one(scores, pattern)

    def fill(self, scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
        """Write the mask of each of a list."""
        if self.many is not None:
            self.many(scores, pattern, masks)
            return
        for each, mask in zip(scores, masks, strict=True):
            mask.copy_(self.one(each, pattern))


def alone(many: Callable[..., None], scores: Tensor, pattern: Any) -> Tensor:
    """The mask of one tensor, by what writes those of a list."""
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    many([scores], pattern, [mask])
    return mask


def buffers(scores: Sequence[Tensor], out: Sequence[Tensor] | None) -> list[Tensor]:
    """The masks to write into: new ones, or the caller's, which have to fit."""
    if out is None:
        return [torch.empty(each.shape, dtype=torch.bool, device=each.device) for each in scores]
    if len(out) != len(scores):
        raise ValueError(f"There are {len(scores)} tensors of scores and {len(out)} in out; it needs one for each.")
    for each, mask in zip(scores, out, strict=True):
        if (mask.dtype, mask.shape, mask.device) != (torch.bool, each.shape, each.device) or not mask.is_contiguous():
            raise ValueError(
                f"out holds a {mask.dtype} of shape {tuple(mask.shape)} on {mask.device} for scores of shape "
                f"{tuple(each.shape)} on {each.device}; it needs a contiguous bool of their shape and device. "
                "Write torch.empty(scores.shape, dtype=torch.bool, device=scores.device), or leave out= away."
            )
    return list(out)
