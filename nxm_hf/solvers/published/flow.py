"""Exact, one tile after the other: minimum-cost flow from rows to columns, solved as a linear programme."""

from importlib.util import find_spec

import numpy
import torch
from torch import Tensor

from nxm_hf.solvers.base import NMPattern
from nxm_hf.solvers.published.tilewise import tilewise


def scipy_is_installed(scores: Tensor, pattern: NMPattern) -> bool:
    """Return whether SciPy, which solves the linear programme, is installed.

    Args:
        scores: Makes no difference.
        pattern: Makes no difference.
    """
    return find_spec("scipy") is not None


@tilewise(3)
def by_flow(q: Tensor, n: int) -> Tensor:
    """Send n units out of every row and into every column, at most one along each entry, for the highest score.

    Reference: Hubara et al., 2021, https://arxiv.org/abs/2102.08124. The corners of this polytope are integer, so its
    best corner is the best mask. Exact to the tolerance of SciPy's HiGHS, and slow.

    Args:
        q: Integer scores, (tiles, m, m).
        n: Kept entries of each row and column.

    Raises:
        ImportError: SciPy is not installed.
    """
    try:
        from scipy.optimize import linprog
        from scipy.sparse import identity, kron, vstack
    except ImportError:
        raise ImportError("Minimum-cost flow needs SciPy, which is not installed. Write: pip install scipy") from None
    m = q.shape[1]
    ones = numpy.ones((1, m))
    counts = vstack([kron(identity(m), ones), kron(ones, identity(m))]).tocsr()
    masks = []
    for tile in q.flatten(1).double().cpu():
        cost = -tile / tile.abs().max().clamp(min=1)
        solution = linprog(cost.numpy(), A_eq=counts, b_eq=[n] * (2 * m), bounds=(0, 1), method="highs-ds")
        masks.append(torch.from_numpy(solution.x > 0.5))
    return torch.stack(masks).view(q.shape).to(q.device)
