"""The solvers of papers, by name: to compare with, and to reproduce published results.

`solve` does not use them. Some keep less than the optimum, and some leave rows and columns short of n, as their
docstrings say. A mask that is short may keep even more than the best one with n in each. All work on integers: rounding
cannot seem to improve a mask, and an infinite score outweighs the finite ones of its tile.
"""

from typing import Any

from nxm_hf.solvers.base import Solver
from nxm_hf.solvers.published.exchange import by_exchange
from nxm_hf.solvers.published.flow import by_flow, scipy_is_installed
from nxm_hf.solvers.published.greedy import by_greedy
from nxm_hf.solvers.published.intersection import by_intersection
from nxm_hf.solvers.published.transport import by_transport
from nxm_hf.solvers.transposable_enumeration import by_enumeration, enumeration_supports

PUBLISHED: dict[str, dict[str, Solver[Any]]] = {
    "transposable": {
        "exhaustive": Solver(by_enumeration, enumeration_supports),
        "min-cost flow": Solver(by_flow, scipy_is_installed),
        "2-approximation": Solver(by_intersection),
        "greedy": Solver(by_greedy),
        "greedy + exchange": Solver(by_exchange),
        "entropic transport": Solver(by_transport),
    },
}

__all__ = ["PUBLISHED"]
