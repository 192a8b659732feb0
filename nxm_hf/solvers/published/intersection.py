"""The 2-approximation of Hubara et al.: the entries in both a mask of the rows and a mask of the columns."""

from torch import Tensor

from nxm_hf.solvers.published.tilewise import tilewise


@tilewise(2)
def by_intersection(q: Tensor, n: int) -> Tensor:
    """Keep the entries that are among the n highest of their row and among the n highest of their column.

    Reference: Hubara et al., 2021, https://arxiv.org/abs/2102.08124, algorithm 1. The paper states it differently:
    prune from the lowest entry on, while its row or its column may still lose one. This prunes the same entries. Where
    no score is below zero, it prunes at most twice what the optimum prunes. Rows and columns are left short of n.

    Args:
        q: Integer scores, (tiles, m, m).
        n: Kept entries of each row and column, at most.
    """
    return _highest(q, n) & _highest(q.mT, n).mT


def _highest(q: Tensor, n: int) -> Tensor:
    """Return the mask of the n highest of each row; of equal ones the first."""
    order = q.argsort(dim=-1, descending=True, stable=True)[..., :n]
    return q.new_zeros(q.shape).bool().scatter_(-1, order, True)
