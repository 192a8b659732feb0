"""Regrouping: which channels should stand together in the groups of N:M, so that a mask keeps more."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROUNDS = 100  # of swaps; for 3072 channels of 768 rows that finds nine tenths of what five hundred would
_LEAST = 1e-6  # the part of what a group keeps that a swap must gain: less than that is rounding


@torch.no_grad()
def regroup(scores: Tensor, n: int, m: int, section: int, rounds: int = ROUNDS) -> Tensor:
    """The order of the channels of `scores` [channels, rows] in which masks keep more of it.

    Of every `m` channels in a row of the matrix the `n` largest are kept. A channel stays in its section, so many
    channels long. In each round every group meets another of its section, and the two swap the pair of channels that
    gains most. The work is bounded by rounds and not by a clock, and nothing is left to chance, so that every process
    finds the same order. Given rounds enough, no single swap would gain anything.

    >>> scores = torch.tensor([[4.0, 3, 2, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 2, 3, 4]]).t()
    >>> [int(kept(part, 2, 4)) for part in (scores, scores[regroup(scores, 2, 4, section=8)])]
    [18, 20]
    """
    groups = _Groups(scores, n, m)
    many, idle = section // m, 0
    for _, (left, right) in zip(range(rounds), _tournament(len(scores) // m, many, scores.device), strict=False):
        idle = 0 if groups.swap(left, right) else idle + 1
        if idle == many:  # everybody has met everybody since
            break
    order = groups.order.flatten()
    return order if kept(scores[order], n, m) > kept(scores, n, m) else order.sort().values


def kept(scores: Tensor, n: int, m: int) -> float:
    """What the best masks of groups of `m` channels keep of `scores` [channels, rows]."""
    return scores.unflatten(0, (-1, m)).topk(n, dim=1).values.sum(dtype=torch.float64).item()


class _Groups:
    """Channels in their groups, and what is known of each: all that a swap needs in order to be weighed.

    Whoever takes the place of a channel i keeps max(limit, score) in each row, where the limit is the n-th largest of
    the others; i itself kept max(limit, score) too. Sums of maxima are distances: max(a, b) = (a + b + |a - b|) / 2.
    """

    def __init__(self, scores: Tensor, n: int, m: int):
        self.n, self.m = n, m
        self.order = torch.arange(len(scores), device=scores.device).view(-1, m)
        self.scores = scores.unflatten(0, (-1, m)).clone()  # (groups, m, rows)
        self.limits = torch.empty_like(self.scores)
        self.shares = self.scores.new_empty(self.scores.shape[:2])  # sums of those maxima
        self._know(torch.arange(len(self.scores), device=scores.device))

    def _know(self, which: Tensor) -> None:
        """Work out limits and shares of some groups."""
        scores = self.scores[which]
        ranked = scores.sort(dim=1, descending=True).values
        last, next_one = ranked[:, self.n - 1, None], ranked[:, self.n, None]
        self.limits[which] = limits = torch.where(scores >= last, next_one, last)
        self.shares[which] = torch.maximum(scores, limits).sum(2)

    def swap(self, left: Tensor, right: Tensor) -> bool:
        """Let groups meet in pairs; whether any two swapped."""
        gains = self._gains(left, right) + self._gains(right, left).transpose(1, 2)
        gain, at = gains.flatten(1).max(1)
        chosen = (gain > _LEAST * self.shares[left].sum(1)).nonzero().squeeze(1)
        if not len(chosen):
            return False
        left, right, at = left[chosen], right[chosen], at[chosen]
        i, j = at // self.m, at % self.m
        for table in (self.order, self.scores):
            table[left, i], table[right, j] = table[right, j], table[left, i]
        self._know(torch.cat([left, right]))
        return True

    def _gains(self, here: Tensor, there: Tensor) -> Tensor:
        """(pairs, m, m): what a group here gains where its channel i gives way to channel j from there."""
        limits, scores = self.limits[here], self.scores[there]
        larger = limits.sum(2)[:, :, None] + scores.sum(2)[:, None, :] + torch.cdist(limits, scores, p=1.0)
        return larger / 2 - self.shares[here][:, :, None]


def _tournament(groups: int, many: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of groups for one round after another: in each section of `many` groups, everybody meets everybody."""
    first = torch.arange(0, groups, many, device=device)[:, None]
    players = [*range(many), None][: many + many % 2]  # of an odd number, one has nobody to meet
    half = len(players) // 2
    while True:
        meeting = zip(players[:half], reversed(players[half:]), strict=True)
        pairs = [pair for pair in meeting if None not in pair]
        left, right = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2).t()
        yield (first + left).flatten(), (first + right).flatten()
        players = [players[0], players[-1], *players[1:-1]]
