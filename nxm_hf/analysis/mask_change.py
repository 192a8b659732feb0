"""Measures of the change of a mask between two steps."""

from torch import Tensor


def mask_similarity(mask: Tensor, before: Tensor) -> float:
    """Return the share of the entries kept before that are still kept.

    Args:
        mask: The later mask, or a weight: every entry that is not zero counts as kept.
        before: The earlier mask of the same layer.

    Returns:
        1 if every entry stayed, N/M on average for two unrelated N:M masks.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import torch
        >>> before, mask = torch.tensor([1, 1, 0, 0, 1, 0, 1, 0]), torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
        >>> mask_similarity(mask, before)
        0.75
    """
    mask, before = _as_masks(mask, before)
    kept_before = int(before.count_nonzero())
    return int((mask & before).count_nonzero()) / kept_before if kept_before else 1.0


def flip_rate(mask: Tensor, before: Tensor) -> float:
    """Return the share of all entries that entered or left the mask.

    Args:
        mask: The later mask, or a weight: every entry that is not zero counts as kept.
        before: The earlier mask of the same layer.

    Returns:
        A value from 0 to 1; for N:M masks it is 2 * (1 - similarity) * N / M.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import torch
        >>> before, mask = torch.tensor([1, 1, 0, 0, 1, 0, 1, 0]), torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
        >>> flip_rate(mask, before)
        0.25
    """
    mask, before = _as_masks(mask, before)
    return int((mask ^ before).count_nonzero()) / max(mask.numel(), 1)


def _as_masks(mask: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to boolean masks after checking their shapes."""
    if mask.shape != before.shape:
        raise ValueError(
            f"Two masks of one weight must have the same shape; got {tuple(mask.shape)} and {tuple(before.shape)}. "
            "Give the masks of the same layer at two times."
        )
    return mask != 0, before != 0
