"""How a mask moved from one time to the next."""

from torch import Tensor


def mask_similarity(mask: Tensor, before: Tensor) -> float:
    """The share of what was kept before that still is: 1 when nothing left, N/M for unrelated N:M masks.

    Whatever is not zero counts as kept, so weights may stand for their masks.

    >>> import torch
    >>> before, mask = torch.tensor([1, 1, 0, 0, 1, 0, 1, 0]), torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
    >>> mask_similarity(mask, before), flip_rate(mask, before)
    (0.75, 0.25)
    """
    mask, before = _as_masks(mask, before)
    old = int(before.count_nonzero())
    return int((mask & before).count_nonzero()) / old if old else 1.0


def flip_rate(mask: Tensor, before: Tensor) -> float:
    """The share of all entries whose place in the mask changed; 2 * (1 - similarity) * N / M for N:M masks."""
    mask, before = _as_masks(mask, before)
    return int((mask ^ before).count_nonzero()) / max(mask.numel(), 1)


def _as_masks(mask: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    if mask.shape != before.shape:
        raise ValueError(
            f"Two masks of one weight have one shape; got {tuple(mask.shape)} and {tuple(before.shape)}. "
            "Give the masks of the same layer at two times."
        )
    return mask != 0, before != 0
