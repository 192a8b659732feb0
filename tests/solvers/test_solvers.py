"""The registry of solvers: every pattern has one, the first that supports the scores is used, and lists go at once."""

import pytest
import torch

from nxm_hf.patterns import NM, PATTERNS, parse
from nxm_hf.solvers import SOLVERS, Solver, choose, solve, solve_many
from nxm_hf.solvers.nm_network import by_network
from tests.support.scores import assert_stays_on_device, seeded

torch.set_num_threads(1)


def test_every_pattern_has_a_solver():
    assert set(SOLVERS) == {kind.kind for kind in PATTERNS}
    assert all(SOLVERS.values()) and sum(map(len, SOLVERS.values())) >= 6


def test_the_first_solver_that_suits_is_asked(monkeypatch):
    def refuse(scores, pattern):
        raise AssertionError("asked, though it does not suit")

    picky = Solver(refuse, supports=lambda scores, pattern: scores.dtype == torch.float64)
    monkeypatch.setitem(SOLVERS, "nm", (picky, *SOLVERS["nm"]))
    assert choose(torch.ones(4).double(), NM(1, 4)) is picky
    assert solve(torch.ones(4), NM(1, 4)).tolist() == [True, False, False, False]


@pytest.mark.parametrize("text", [text for kind in PATTERNS for text in kind.examples])
@pytest.mark.parametrize("bring", [False, True])
def test_a_list_gets_the_masks_of_its_tensors(text, bring):
    pattern = parse(text)
    scores = [seeded(40, 120).abs(), seeded(0, 120), seeded(2, 80, 120, seed=1), seeded(120, 120, seed=2).mT]
    scores += [seeded(40, 240, seed=3)[:, ::2].bfloat16(), seeded(40, 120, dtype=torch.float64)]
    out = [torch.empty(each.shape, dtype=torch.bool) for each in scores] if bring else None
    masks = solve_many(scores, pattern, out)
    for each, mask in zip(scores, masks, strict=True):
        assert torch.equal(mask, pattern.mask(each))
    assert not bring or all(mask is given for mask, given in zip(masks, out, strict=True))


def test_a_solver_of_lists_gets_all_that_it_suits_at_once(monkeypatch):
    asked = []

    def many(scores, pattern, masks):
        asked.append(len(scores))
        for each, mask in zip(scores, masks, strict=True):
            mask.copy_(by_network(each, pattern))

    monkeypatch.setitem(SOLVERS, "nm", (Solver(by_network, lambda scores, _: scores.dim() == 2, many), *SOLVERS["nm"]))
    scores = [seeded(4, 8), seeded(8), seeded(2, 4), seeded(0, 4)]
    for each, mask in zip(scores, solve_many(scores, NM(2, 4)), strict=True):
        assert torch.equal(mask, NM(2, 4).mask(each))
    assert asked == [2]


@pytest.mark.parametrize(
    "out",
    [
        [torch.empty(4)],
        [torch.empty(8, dtype=torch.bool)],
        [torch.empty(8, dtype=torch.bool)[::2]],
        [torch.empty(4, dtype=torch.bool, device="meta")],
    ],
)
def test_masks_that_do_not_fit_are_refused(out):
    with pytest.raises(
        ValueError, match=r"must be contiguous, of dtype bool, with their shape and device.*Write torch.empty"
    ):
        solve_many([torch.ones(4)], NM(2, 4), out)
    with pytest.raises(ValueError, match="2 tensors of scores and 1 in out"):
        solve_many([torch.ones(4)] * 2, NM(2, 4), out)


@pytest.mark.parametrize("text", [text for kind in PATTERNS for text in kind.examples])
def test_solvers_leave_the_random_generator_alone(text):
    before = torch.random.get_rng_state()
    solve(torch.ones(40, 120), parse(text))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("text", [kind.examples[0] for kind in PATTERNS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_solvers_stay_on_the_device_of_the_scores(text, dtype):
    pattern, scores = parse(text), seeded(48, 96, dtype=dtype)
    for solver in SOLVERS[pattern.kind]:
        if solver.supports(scores, pattern):
            assert_stays_on_device(solver, scores, pattern)
    with torch.device("meta"):
        (mask,) = solve_many([scores], pattern)
    assert torch.equal(mask, pattern.mask(scores))
