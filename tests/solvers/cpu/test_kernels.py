"""Kernels for CPUs give the masks of torch: the same bits, but for tiles of more than 4 x 4 the same worth."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf import recipes
from nxm_hf.patterns import parse
from nxm_hf.solvers import SOLVERS, choose, cpu, nearest, solve, solve_many
from tests.support.cpu_kernels import FLOATS, INF, PLAIN, PREDICTED, TILED, in_torch, weights
from tests.support.scores import assert_holds, distributions, tiles_of
from tests.support.toy_training import same, short, trained

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("kernels_for_every_size")
quick = settings(max_examples=40)


@quick
@given(weights(), st.sampled_from([*PLAIN, "unstructured:0.5", "unstructured:0.03"]), st.sampled_from(FLOATS))
def test_kernels_and_torch_give_one_mask(weight, text, dtype):
    scores, pattern = weight.to(dtype), parse(text)
    assert choose(scores, pattern).__name__ == PREDICTED[pattern.kind]
    assert torch.equal(solve(scores, pattern), in_torch(lambda: solve(scores, pattern)))
    assert torch.equal(pattern.largest(scores), in_torch(lambda: pattern.largest(scores)))
    assert same([pattern.project(scores)], [in_torch(lambda: pattern.project(scores))])


@pytest.mark.parametrize("text", TILED)
def test_transposable_masks_of_kernels_and_torch_are_worth_the_same(text):
    pattern = parse(text)
    for name, scores in distributions(64, 224 // pattern.m * pattern.m).items():
        if not cpu.supports_tiles(scores, pattern):
            continue
        mask, other = solve(scores, pattern), in_torch(lambda scores=scores: solve(scores, pattern))
        assert_holds(mask, pattern.n, pattern.m)
        ours, theirs = (tiles_of(scores.double() * kept, pattern.m).sum((1, 2)) for kept in (mask, other))
        assert bool((ours >= theirs - 1e-6 * theirs.abs()).all()), name


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [64, 192, 60, 204])
def test_small_tiles_get_the_bits_of_torch(n, dtype, width):
    pattern = parse(f"{n}:4-transposable")
    for scores in [
        *distributions(64, width).values(),
        torch.full((8, width), torch.finfo(torch.float32).max).mul_(torch.linspace(0.1, 1, width)),
    ]:
        signed = (scores * (torch.arange(width) % 3 - 1)).to(dtype)
        assert torch.equal(solve(signed, pattern), in_torch(lambda signed=signed: solve(signed, pattern)))
        assert torch.equal(pattern.largest(signed), in_torch(lambda signed=signed: pattern.largest(signed)))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("width", [64, 204])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-13, 1e25])
def test_the_nearest_small_tiles_get_the_bits_of_torch(n, width, scale):
    pattern = parse(f"{n}:4-transposable")
    normal = torch.randn(64, width, generator=torch.Generator().manual_seed(n))
    rare = torch.where(torch.rand(64, width) < 0.1, 1e6, 1.0)
    infinite = normal.masked_fill(torch.rand(64, width) < 0.05, INF)
    ties, sparse, least = (2 * normal).round() / 2, pattern.project(normal), torch.where(normal > 1, 1e-45, 0.0)
    for weight in (normal, normal**5, normal * rare, infinite, -infinite, ties, sparse, least, normal.bfloat16()):
        scaled = weight * scale
        assert torch.equal(pattern.nearest(scaled), in_torch(lambda scaled=scaled: pattern.nearest(scaled)))
        assert same([pattern.project(scaled)], [in_torch(lambda scaled=scaled: pattern.project(scaled))])


def uneven(height, width, scale):
    """Yield weights of many kinds: with outliers, infinities, ties and zeros of both signs; and in half precision."""
    made = torch.Generator().manual_seed(height + width)
    normal, chance = torch.randn(height, width, generator=made), torch.rand(height, width, generator=made)
    zeros = normal * torch.where(chance < 0.9, 0.0, 1.0)
    zeros[:8, :8], zeros[0, 0], zeros[1, 1] = -0.0, 1.0, 1e-9  # what is lost beside 1 is pruned, or is not
    kinds = [normal, normal**5, normal**9, normal * torch.where(chance < 0.1, 1e6, 1.0), (2 * normal).round() / 2]
    kinds += [normal.masked_fill(chance < 0.05, -INF), zeros, normal * torch.logspace(-44, 30, width)]
    for kind in kinds:
        yield kind * scale
    yield (normal * scale).bfloat16()
    yield normal.half()


@pytest.mark.parametrize("scale", [1.0, 1e-41, 2.0**-40, 2.0**58, 1e30])
@pytest.mark.parametrize(("text", "width"), [("4:8", 200), ("4:8", 128), ("8:16", 208), ("16:32", 96)])
def test_kernels_that_square_give_the_bits_of_kernels_on_squares_that_torch_makes(text, width, scale):
    pattern = parse(f"{text}-transposable")
    for weight in uneven(64, width, scale):
        strips = weight.view(-1, pattern.m, width)
        expected = nearest._nearest_strips(strips, pattern).view(weight.shape)
        assert torch.equal(pattern.nearest(weight), expected)
        kept = torch.where(expected, weight, torch.zeros((), dtype=weight.dtype)) + 0.0
        for found in (pattern.project(weight), pattern.project(weight, out=weight)):
            assert torch.equal(found, kept) and not found[found == 0].signbit().any()
        assert torch.equal(weight, kept)


@pytest.mark.parametrize("outlier", [1.0, 100.0, 1e6])
@pytest.mark.parametrize("text", ["4:8-transposable", "8:16-transposable", "16:32-transposable"])
def test_nearest_masks_of_kernels_prune_no_more_than_those_of_torch(text, outlier):
    pattern = parse(text)
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[::7, ::5] *= outlier
    mask, other = pattern.nearest(weight), in_torch(lambda: pattern.nearest(weight))
    assert_holds(mask, pattern.n, pattern.m)
    ours, theirs = (tiles_of(weight.double().square() * ~kept, pattern.m).sum((1, 2)) for kept in (mask, other))
    assert bool((ours <= theirs * (1 + 1e-5)).all())


@pytest.mark.parametrize("text", ["4:8-transposable", "16:32-transposable"])
def test_a_weight_with_a_nan_is_refused_also_when_it_is_overwritten(text):
    weight = torch.randn(64, 96)
    weight[40, 70] = torch.nan
    for out in (None, torch.empty_like(weight), weight):
        with pytest.raises(ValueError, match="1 NaN of"):
            parse(text).project(weight, out=out)


@pytest.mark.parametrize("text", [*TILED, "unstructured:0.5"])
def test_a_mask_of_magnitudes_is_that_of_their_absolute_values(text):
    pattern = parse(text)
    weight = torch.randn(64, 224 // getattr(pattern, "m", 4) * getattr(pattern, "m", 4))
    weight[:4] = (2 * weight[:4]).round() / 2
    weight[9, 9], weight[9, 10] = INF, -INF
    assert torch.equal(pattern.largest(weight), pattern.mask(weight.abs()))


@pytest.mark.parametrize("place", [(0, 0), (37, 100), (63, 199)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("text", ["2:4-transposable", "4:8-transposable", "unstructured:0.5"])
def test_a_nan_is_refused_in_the_pass_that_makes_the_mask(text, sign, place):
    weight = torch.randn(64, 200)
    weight[place] = sign * torch.nan
    for act in (parse(text).largest, parse(text).nearest, parse(text).project):
        for each in (weight, weight.bfloat16()):
            with pytest.raises(ValueError, match="1 NaN of"):
                act(each)


@pytest.mark.parametrize("text", TILED)
def test_a_transposable_mask_has_the_largest_infinities(text):
    scores = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    scores[5, 7], scores[40, 70], scores[41, 70] = INF, INF, -INF
    mask = solve(scores, parse(text))
    assert mask[5, 7] and mask[40, 70] and not mask[41, 70]
    assert_holds(mask, parse(text).n, parse(text).m)


@pytest.mark.parametrize("text", ["2:4", "4:8-transposable", "unstructured:0.5"])
def test_a_list_is_solved_as_its_tensors_are(text):
    scores = [torch.randn(shape) for shape in ((32, 64), (3, 16, 64), (64, 32))]
    scores.append(scores[0].bfloat16())
    scores.append(torch.randn(64, 32).mT)
    for mask, each in zip(solve_many(scores, parse(text)), scores, strict=True):
        assert torch.equal(mask, solve(each, parse(text)))


def test_what_has_no_kernel_is_solved_by_torch():
    for scores, text in (
        (torch.ones(16, 60), "3:5"),
        (torch.ones(4, 4), "2:4"),
        (torch.ones(16, 64, dtype=torch.float64), "2:4"),
        (torch.ones(16, 64, dtype=torch.int32), "2:4"),
        (torch.ones(15, 60), "3:5-transposable"),
    ):
        assert choose(scores, parse(text)).__name__ not in PREDICTED.values()


@pytest.mark.parametrize("recipe", recipes.names())
def test_a_training_is_the_same_by_kernels_and_by_torch(recipe):
    (model, engine), (other, other_engine) = trained(short(recipe)), in_torch(lambda: trained(short(recipe)))
    assert same(engine.state_dict(), other_engine.state_dict())
    engine.finish()
    in_torch(other_engine.finish)
    assert same(model.state_dict(), other.state_dict())


def test_every_solver_for_cpus_is_the_first_of_its_kind():
    assert all(SOLVERS[kind][0] is solver for kind, solver in cpu.SOLVERS.items())


def test_kernels_are_compiled_anew_if_a_file_changes_that_their_code_is_made_of(monkeypatch):
    """Kernels on the disk are known by a digest of these files. The file that only calls kernels is none of them."""
    assert cpu.BACKEND.kernels
    intrinsics, read = sys.modules["nxm_hf.solvers.cpu.intrinsics"], Path.read_bytes
    folder, digest = Path(intrinsics.__file__).parent, intrinsics._digest_of_sources.__wrapped__
    before, above = (
        digest(),
        [folder.parent / f"{name}.py" for name in ("comparator_network", "transposable_enumeration")],
    )
    for changed in (*folder.glob("*.py"), *above):
        monkeypatch.setattr(Path, "read_bytes", lambda path, it=changed: read(path) + b"#" * (path == it))
        assert (digest() == before) == (changed.name == "launch.py"), changed


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="there is no AVX-512 here")
@pytest.mark.skipif(any(name.startswith("NUMBA_CPU") for name in os.environ), reason="numba is told for which CPU")
def test_kernels_that_gather_are_used_where_torch_sees_avx512():
    assert cpu.BACKEND.kernels.can_gather()
