"""`analysis.compare_solvers`: what it says of each solver, against counts made here."""

import pytest
import torch

from nxm_hf import analysis
from nxm_hf.patterns import PATTERNS, parse
from nxm_hf.solvers import SOLVERS
from nxm_hf.solvers.published import PUBLISHED

torch.set_num_threads(1)

EXAMPLES = [text for kind in PATTERNS for text in kind.examples]


def weight(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_solver_that_suits_has_a_line_and_ours_keep_the_most(text, monkeypatch):
    monkeypatch.setattr("nxm_hf.analysis.solver_comparison.TIME_BUDGET", 1e-9)
    given, pattern = weight(40, 120), parse(text)
    found = analysis.compare_solvers(given, text if text != "dense" else pattern, None)
    ours = [solver.__name__ for solver in SOLVERS[pattern.kind] if solver.supports(given, pattern)]
    assert [result.solver for result in found.results][: len(ours)] == ours
    for result in found.results[: len(ours)]:
        assert result.mean == pytest.approx(1, abs=1e-6) and result.worst == pytest.approx(1, abs=1e-6)
        assert result.density == pattern.kept(given.shape) / given.numel() and result.seconds > 0
    assert all(result.violations == 0 for result in found.results)
    lines = str(found).splitlines()
    assert lines[0] == f"{pattern} of 40x120 torch.float32 on cpu" and len(lines) == 4 + len(found.results)


def test_the_shares_are_of_each_tile():
    given = weight(8, 16)
    found = analysis.compare_solvers(given, "4:8-transposable", only=["greedy", "by_duals"])
    assert [result.solver for result in found.results] == ["by_duals", "greedy"]
    pattern, shares, kept = parse("4:8-transposable"), [], 0
    for tile in (given[:, :8].abs(), given[:, 8:].abs()):
        mask = PUBLISHED["transposable"]["greedy"](tile, pattern)
        shares.append(float(tile[mask].sum() / tile[pattern.mask(tile)].sum()))
        kept += int(mask.sum())
    assert shares[0] != shares[1] and found.results[1].density == kept / 128
    assert found.results[1].mean == pytest.approx(sum(shares) / 2, abs=1e-6)
    assert found.results[1].worst == pytest.approx(min(shares), abs=1e-6)


def test_groups_with_nothing_or_infinity_to_keep_are_whole():
    given = torch.zeros(8, 8)
    given[0, 0], given[5, 5] = -torch.inf, 1e-30
    for text in ("2:4", "2:4-transposable"):
        found = analysis.compare_solvers(given, text)
        assert found.results[0].worst == 1


def test_a_name_that_does_not_suit_is_refused():
    with pytest.raises(
        ValueError, match=r"No solver 'exhaustive', 'fast' supports 2:4 for this weight; these do:.*by_sorting"
    ):
        analysis.compare_solvers(weight(4, 4), "2:4", only=["fast", "by_sorting", "exhaustive"])
    with pytest.raises(ValueError, match="1 NaN"):
        analysis.compare_solvers(torch.full((1, 4), 1.0).index_fill(1, torch.tensor([2]), torch.nan), "2:4")
