"""ALPS against its equations, and against the best of all masks."""

from itertools import combinations, product

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.pruners import ALPS, SparseGPT
from nxm_hf.pruners.alps import admm_search
from nxm_hf.pruners.hessian import Hessian
from nxm_hf.pruners.least_squares import least_squares
from nxm_hf.pruners.sparsegpt import obs_sweep
from tests.support.one_shot import COMPARED, SHARP, generator, layer, statistics, tokens


@pytest.mark.parametrize("text", ["2:4", "2:4-transposable", "block:4:0.5"])
@pytest.mark.parametrize("start", [0.1, 300.0], ids=["changing", "standing still at first"])
def test_alps_alternates_as_its_equations_say(start, text):
    """ADMM in the weights themselves, with an inverse per step, against the eigenvectors on scaled inputs."""
    x, (weight, _), pattern = tokens(), layer(torch.float64), parse(text)
    hessian = Hessian.from_inputs(statistics(x), 0.01, centred=False)
    swept = obs_sweep(weight, hessian, pattern)
    found = admm_search(weight, hessian, pattern, swept, rho=start, steps=40)
    norms = hessian.matrix.diagonal()
    rho, moved, z, u = start, False, swept.weight, torch.zeros_like(weight)
    for _ in range(40):
        system = hessian.matrix + rho * torch.diag(norms)
        v = (weight @ hessian.matrix + rho * (z - u) * norms) @ torch.linalg.inv(system)
        old, z = z, torch.where(pattern.nearest((v + u) * norms.sqrt()), v + u, 0)
        u = u + v - z
        share = ((z != 0) & (old == 0)).sum() / (z != 0).sum()
        if moved and share < 0.003:
            break
        moved = moved or share >= 0.003
        factor = 0.2 if not moved else 1.1 if share > 0.1 else 1.07
        rho, u = rho * factor, u / factor
    assert torch.equal(found.mask, z != 0)
    assert torch.allclose(found.weight, z, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("pattern", COMPARED)
def test_a_band_of_rows_is_taken_whole_from_the_sweep_where_the_search_is_worse(pattern):
    """A search that stops after one iteration is worse in about a third of the rows."""
    pattern, inputs = parse(pattern), statistics(tokens())
    weight = torch.cat([layer(torch.float64, seed)[0] for seed in (5, 7, 9, 11)])
    hessian = Hessian.from_inputs(inputs, 0.01, centred=False)
    swept = obs_sweep(weight, hessian, pattern)
    found = admm_search(weight, hessian, pattern, swept, rho=0.1, steps=1)
    method = ALPS(damping=0.01, rho=0.1, steps=1, bias="keep", tolerance=1e-12)
    mine = method.prune(weight, None, inputs, pattern)
    swept_costs, found_costs = (hessian.cost(weight - one.weight) for one in (swept, found))
    band = {"NM": 1, "Transposable": getattr(pattern, "m", 0)}.get(type(pattern).__name__, len(weight))
    for begin in range(0, len(weight), band):
        rows = slice(begin, begin + band)
        better = swept if swept_costs[rows].sum() < found_costs[rows].sum() else found
        assert torch.equal(mine.mask[rows], better.mask[rows])
        best = least_squares(weight[rows], better.mask[rows], weight[rows], hessian, 1e-12)
        assert torch.allclose(mine.weight[rows], best, rtol=1e-4, atol=1e-5)


def test_alps_is_between_the_best_mask_of_all_and_that_of_the_sweep():
    x, weight = tokens(100, 8), torch.randn(6, 8, generator=generator(3), dtype=torch.float64)
    inputs, pattern = statistics(x), parse("2:4")
    hessian = Hessian.from_inputs(inputs, 0.01, centred=False)
    found = SHARP["alps"](weight, None, inputs, pattern)
    pairs = [list(pair) for pair in combinations(range(4), 2)]
    masks = torch.zeros(36, 8, dtype=torch.bool)
    for mask, (left, right) in zip(masks, product(pairs, pairs), strict=True):
        mask[[*left, *(4 + place for place in right)]] = True
    for row, mine in zip(weight, found.weight, strict=True):
        rows = row.expand(36, 8)
        best = hessian.cost(rows - least_squares(rows, masks, rows, hessian, 1e-14)).min()
        cost = hessian.cost((row - mine)[None])
        assert best <= cost * (1 + 1e-6)
        for name in ("adaprune", "adaprune-wanda", "adaprune-sparsegpt", "sparsegpt"):
            theirs = SHARP[name](row[None], None, inputs, pattern).weight
            assert cost <= hessian.cost(row[None] - theirs) * (1 + 1e-3)


@pytest.mark.parametrize("bias_mode", ["after", "joint"])
@pytest.mark.parametrize("pattern", COMPARED)
def test_weights_of_dead_inputs_make_room_for_others_and_stay_where_they_are_kept(pattern, bias_mode):
    x, (weight, bias), pattern = tokens(), layer(torch.float64), parse(pattern)
    x[:, ::3] = 0 if bias_mode == "after" else 0.7  # a bias that is fitted absorbs constant inputs
    weight[:, ::3] *= 3
    inputs = statistics(x)
    hessian = Hessian.for_bias_mode(inputs, 0.01, bias, bias_mode)
    assert torch.equal(hessian.dead, torch.arange(x.shape[1]) % 3 == 0)
    found, swept = (
        method(damping=0.01, bias=bias_mode).prune(weight, bias, inputs, pattern) for method in (ALPS, SparseGPT)
    )
    costs = [hessian.cost(torch.where(hessian.dead, 0, weight - one.weight)).sum() for one in (found, swept)]
    assert costs[0] <= costs[1]
    kept = found.mask & hessian.dead
    assert torch.equal(found.weight[kept], weight[kept])
