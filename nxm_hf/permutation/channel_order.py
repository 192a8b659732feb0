"""Search for the order of channels in which N:M masks keep the most, by swaps between groups."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROUNDS = 100  # of swaps; for 3072 channels of 768 rows that gives nine tenths of the gain of 500 rounds
_MIN_GAIN = 1e-6  # the least gain of a swap, as a share of what the group keeps; less is rounding


@torch.no_grad()
def best_order(scores: Tensor, n: int, m: int, section: int, rounds: int = ROUNDS) -> Tensor:
    """Search for the order of channels in which N:M masks keep the highest score.

    In each round, every group is paired with another group of its section, and the two swap the pair of channels
    that gains most. The search is bounded by rounds rather than by time, and is deterministic, so every process
    finds the same order. With enough rounds, no swap of two channels would gain anything.

    Args:
        scores: The score of each weight, [channels, rows]. Channels are the inputs of the layer.
        n: The number of channels that a mask keeps in each group, for each row.
        m: The number of channels of a group.
        section: The number of channels of a section; each channel stays in its section.
        rounds: The largest number of rounds.

    Returns:
        The order: the index of the channel that stands at each place, [channels].

    >>> scores = torch.tensor([[4.0, 3, 2, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 2, 3, 4]]).t()
    >>> order = best_order(scores, 2, 4, section=8)
    >>> kept_score(scores, 2, 4), kept_score(scores[order], 2, 4)
    (18.0, 20.0)
    """
    groups = _Groups(scores, n, m)
    section_groups, rounds_without_swap = section // m, 0
    pairings = _pairings(len(scores) // m, section_groups, scores.device)
    for _, (left, right) in zip(range(rounds), pairings, strict=False):
        rounds_without_swap = 0 if groups.swap(left, right) else rounds_without_swap + 1
        if rounds_without_swap == section_groups:  # all pairs of groups have been compared since the last swap
            break
    order = groups.order.flatten()
    gains = kept_score(scores[order], n, m) > kept_score(scores, n, m)
    return order if gains else order.sort().values


def kept_score(scores: Tensor, n: int, m: int) -> float:
    """Return the sum of the scores that the best N:M mask keeps.

    Args:
        scores: The score of each weight, [channels, rows].
        n: The number of channels that a mask keeps in each group, for each row.
        m: The number of channels of a group.

    Returns:
        The sum.
    """
    return scores.unflatten(0, (-1, m)).topk(n, dim=1).values.sum(dtype=torch.float64).item()


class _Groups:
    """The channels by group, with the sums that are needed to compute the gain of a swap.

    If a channel j takes the place of channel i in a group, row r keeps max(limit_ir, score_jr) in that place. The
    limit is the n-th largest score of the other channels of the group. Channel i itself kept max(limit_ir, score_ir).
    As max(a, b) = (a + b + |a - b|) / 2, sums of these maxima over the rows are L1 distances.

    Args:
        order: The channel at each place, [groups, m].
        scores: The scores of the channels, [groups, m, rows].
        limits: The limits, [groups, m, rows].
        shares: The sum over the rows of max(limit, score), [groups, m].
    """

    def __init__(self, scores: Tensor, n: int, m: int):
        self.n, self.m = n, m
        self.order = torch.arange(len(scores), device=scores.device).view(-1, m)
        self.scores = scores.unflatten(0, (-1, m)).clone()
        self.limits = torch.empty_like(self.scores)
        self.shares = self.scores.new_empty(self.scores.shape[:2])
        self._update(torch.arange(len(self.scores), device=scores.device))

    def _update(self, groups: Tensor) -> None:
        """Recompute limits and shares of some groups."""
        scores = self.scores[groups]
        ranked = scores.sort(dim=1, descending=True).values
        nth, following = ranked[:, self.n - 1, None], ranked[:, self.n, None]
        # Without a channel that is among the n largest, the n-th largest of the others is the one that follows.
        self.limits[groups] = limits = torch.where(scores >= nth, following, nth)
        self.shares[groups] = torch.maximum(scores, limits).sum(2)

    def swap(self, left: Tensor, right: Tensor) -> bool:
        """Swap the best pair of channels of each pair of groups, where that gains something.

        Args:
            left: The first group of each pair, [pairs].
            right: The second group of each pair, [pairs]; no group occurs twice.

        Returns:
            Whether any channels were swapped.
        """
        gains = self._gains(left, right) + self._gains(right, left).transpose(1, 2)
        gain, index = gains.flatten(1).max(1)
        chosen = (gain > _MIN_GAIN * self.shares[left].sum(1)).nonzero().squeeze(1)
        if not len(chosen):
            return False
        left, right, index = left[chosen], right[chosen], index[chosen]
        i, j = index // self.m, index % self.m
        for entries in (self.order, self.scores):
            entries[left, i], entries[right, j] = entries[right, j], entries[left, i]
        self._update(torch.cat([left, right]))
        return True

    def _gains(self, groups: Tensor, others: Tensor) -> Tensor:
        """Return what each group gains if its channel i is replaced by channel j of the other, [pairs, m, m]."""
        limits, scores = self.limits[groups], self.scores[others]
        doubled = limits.sum(2)[:, :, None] + scores.sum(2)[:, None, :] + torch.cdist(limits, scores, p=1.0)
        return doubled / 2 - self.shares[groups][:, :, None]


def _pairings(groups: int, section_groups: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of groups, round after round, so that within a section every group is paired with every other.

    This is the circle method of round-robin tournaments: the first stays, and the others rotate.
    """
    first = torch.arange(0, groups, section_groups, device=device)[:, None]
    circle: list[int | None] = [*range(section_groups), None][: section_groups + section_groups % 2]
    half = len(circle) // 2  # with an odd number of groups, None is the partner of the group that rests
    while True:
        partners = zip(circle[:half], reversed(circle[half:]), strict=True)
        pairs = [pair for pair in partners if None not in pair]
        left, right = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2).t()
        yield (first + left).flatten(), (first + right).flatten()
        circle = [circle[0], circle[-1], *circle[1:-1]]
