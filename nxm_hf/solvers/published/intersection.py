"""The 2-approximation of Hubara et al.: what stays both in a mask of the rows and in one of the columns."""

from torch import Tensor

from nxm_hf.solvers.published.tilewise import tilewise


@tilewise(2)
def by_intersection(q: Tensor, n: int) -> Tensor:
    """Keep what is among the n highest of its row and among the n highest of its column.

    Reference: Hubara et al., 2021, https://arxiv.org/abs/2102.08124, algorithm 1. It is stated there as pruning from
    the lightest entry on while its row or its column may still lose one; that prunes exactly what this does.
    Where no score is below zero, it prunes at most twice what the optimum prunes. Rows and columns are left short of n.
    """
    return _highest(q, n) & _highest(q.mT, n).mT


def _highest(q: Tensor, n: int) -> Tensor:
    """The n highest of each row; of equals the first."""
    order = q.argsort(dim=-1, descending=True, stable=True)[..., :n]
    return q.new_zeros(q.shape).bool().scatter_(-1, order, True)
