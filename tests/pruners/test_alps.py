"""ALPS against its equations, and against the best of all masks."""

from itertools import combinations, product

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.pruners.alps import admm_search
from nxm_hf.pruners.hessian import Hessian
from nxm_hf.pruners.least_squares import least_squares
from tests.support.one_shot import SHARP, generator, layer, statistics, tokens


@pytest.mark.parametrize("text", ["2:4", "2:4-transposable", "block:4:0.5"])
@pytest.mark.parametrize("start", [0.1, 300.0], ids=["changing", "standing still at first"])
def test_alps_alternates_as_its_equations_say(start, text):
    """ADMM in the weights themselves, with an inverse per step, against the eigenvectors on scaled inputs."""
    x, (weight, _), pattern = tokens(), layer(torch.float64), parse(text)
    hessian = Hessian.from_inputs(statistics(x), 0.01, centred=False)
    found = admm_search(weight, hessian, pattern, rho=start, steps=40)
    norms = hessian.matrix.diagonal()
    rho, restarts = start, True
    z = old = torch.where(pattern.nearest(weight * norms.sqrt()), weight, 0)
    u = torch.zeros_like(z)
    for step in range(1, 41):
        system = hessian.matrix + rho * torch.diag(norms)
        v = (weight @ hessian.matrix + rho * (z - u) * norms) @ torch.linalg.inv(system)
        z = torch.where(pattern.nearest((v + u) * norms.sqrt()), v + u, 0)
        u = u + v - z
        if step % 3 == 0:
            share = ((z != 0) & (old == 0)).sum() / (z != 0).sum()
            old, restarts = z, restarts and share == 0
            if share == 0 and not restarts:
                break
            factor = 1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1 if share > 0 else 0.2
            rho, u = rho * factor, u / factor
    assert torch.equal(found.mask, z != 0)
    assert torch.allclose(found.weight, z, rtol=1e-6, atol=1e-9)


def test_alps_is_between_the_best_mask_of_all_and_the_best_of_its_candidates():
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
