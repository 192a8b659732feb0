"""The solvers of papers, by name: to compare with, and to reproduce what was published.

They are not asked by `solve`. Some keep less than the optimum, and some leave rows and columns short of n; each says
so. A mask that is short may keep even more than the best one with n in each. All work on whole numbers, where nothing
seems to improve a mask by rounding alone, and where an infinite score outweighs the finite ones of its tile.
"""

from nxm_hf.solvers.base import Solver
from nxm_hf.solvers.published.exchange import by_exchange
from nxm_hf.solvers.published.flow import by_flow, scipy_is_here
from nxm_hf.solvers.published.greedy import by_greed
from nxm_hf.solvers.published.intersection import by_intersection
from nxm_hf.solvers.published.transport import by_transport
from nxm_hf.solvers.transposable_enumeration import by_enumeration, four_by_four

PUBLISHED: dict[str, dict[str, Solver]] = {
    "transposable": {
        "exhaustive": Solver(by_enumeration, four_by_four),
        "min-cost flow": Solver(by_flow, scipy_is_here),
        "2-approximation": Solver(by_intersection),
        "greedy": Solver(by_greed),
        "greedy + exchange": Solver(by_exchange),
        "entropic transport": Solver(by_transport),
    },
}

__all__ = ["PUBLISHED"]
