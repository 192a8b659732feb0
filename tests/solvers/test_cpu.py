"""The fast tier beside torch: the same bits from both, for every dtype, pattern and task, and in every process."""

import ctypes
import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf import recipes
from nxm_hf.patterns import parse
from nxm_hf.solvers import SOLVERS, base, choose, cpu, reference_only, solve, solve_many, weight_ops
from tests.solvers.test_transposable import assert_holds, distributions, tiles_of
from tests.support.toy_training import same, short, trained

pytest.importorskip("numba", reason="the fast tier needs numba")
torch.set_num_threads(1)
quick = settings(max_examples=40)
INF = float("inf")
PLAIN = ["1:2", "2:4", "1:4", "3:4", "4:8", "8:16", "16:32", "31:32"]
TILED = ["2:4-transposable", "1:8-transposable", "4:8-transposable", "16:32-transposable"]
PREDICTED = {"nm": "by_cpu_network", "transposable": "by_cpu_duals", "unstructured": "by_cpu_threshold"}
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    assert cpu.BACKEND.works(), "numba is installed and does not work here"


def in_torch(act):
    with reference_only():
        return act()


values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-40, 3e38, INF, -INF]) | st.floats(
    width=32, allow_nan=False
)


@st.composite
def weights(draw, rows=16, cols=64):
    """Mostly random numbers, with drawn ones among them, or only few different ones."""
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    weight = torch.randn(rows, cols, generator=made)
    step = draw(st.sampled_from([0.0, 0.5, 2.0]))
    if step:
        weight = (weight / step).round() * step  # ties, and -0.0
    places = torch.randint(0, rows * cols, (12,), generator=made)
    drawn = draw(st.lists(values, min_size=12, max_size=12))
    return weight.flatten().index_copy(0, places, torch.tensor(drawn)).view(rows, cols)


# Masks


@quick
@given(weights(), st.sampled_from([*PLAIN, "unstructured:0.5", "unstructured:0.03"]), st.sampled_from(FLOATS))
def test_both_tiers_give_one_mask(weight, text, dtype):
    scores, pattern = weight.to(dtype), parse(text)
    assert choose(scores, pattern).__name__ == PREDICTED[pattern.kind]
    assert torch.equal(solve(scores, pattern), in_torch(lambda: solve(scores, pattern)))
    assert torch.equal(pattern.largest(scores), in_torch(lambda: pattern.largest(scores)))
    assert same([pattern.project(scores)], [in_torch(lambda: pattern.project(scores))])


@pytest.mark.parametrize("text", TILED)
def test_transposable_masks_of_both_tiers_are_worth_the_same(text):
    pattern = parse(text)
    for name, scores in distributions(64, 224 // pattern.m * pattern.m).items():
        if not cpu.supports_tiles(scores, pattern):
            continue
        mask, other = solve(scores, pattern), in_torch(lambda scores=scores: solve(scores, pattern))
        assert_holds(mask, pattern.n, pattern.m)
        ours, theirs = (tiles_of(scores.double() * kept, pattern.m).sum((1, 2)) for kept in (mask, other))
        assert bool((ours >= theirs - 1e-6 * theirs.abs()).all()), name


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


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4095, 70001])
@pytest.mark.parametrize("kind", ["gaussian", "two values", "sorted", "one value"])
def test_unstructured_masks_of_any_length_and_of_misleading_samples(size, kind):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size))
    scores = {"two values": scores.sign(), "sorted": scores.sort()[0], "one value": scores * 0}.get(kind, scores)
    scores[::17] = 9.0  # near what the sample takes
    for density in (0.01, 0.5, 0.97):
        pattern = parse(f"unstructured:{density}")
        assert torch.equal(solve(scores, pattern), in_torch(lambda pattern=pattern: solve(scores, pattern)))


def test_what_has_no_kernel_is_solved_by_torch():
    for scores, text in (
        (torch.ones(16, 60), "3:5"),
        (torch.ones(4, 4), "2:4"),
        (torch.ones(16, 64, dtype=torch.float64), "2:4"),
        (torch.ones(16, 64, dtype=torch.int32), "2:4"),
        (torch.ones(15, 60), "3:5-transposable"),
    ):
        assert choose(scores, parse(text)).__name__ not in PREDICTED.values()


# One pass over a weight


@quick
@given(weights(), weights(), weights(), st.sampled_from(PLAIN), st.booleans(), st.booleans())
def test_both_tiers_do_the_same_to_a_weight(weight, r, other, text, first, dual):
    weight, r = (torch.where(x.isinf(), 7.0, x) for x in (weight, r))  # inf - inf is refused
    pattern, mask = parse(text), parse(text).largest(other)
    for act in (
        lambda w, x, m: weight_ops.admm_update(w, x, pattern, first, dual),
        lambda w, x, m: weight_ops.remask(w, m, x, pattern),
        lambda w, x, m: weight_ops.remask(w, m.fill_(True), x, pattern),
        lambda w, x, m: weight_ops.keep(w, m),
    ):
        ours, theirs = ([x.clone() for x in (weight, r, mask)] for _ in range(2))
        found, expected = act(*ours), in_torch(lambda act=act, theirs=theirs: act(*theirs))
        assert same(ours, theirs)
        assert (found is None and expected is None) or torch.equal(found, expected)


def test_what_is_pruned_of_infinities_is_zero():
    weight = torch.full((4, 64), -INF)
    weight_ops.keep(weight, parse("2:4").largest(weight))
    assert weight.isinf().sum() == 128 and same([weight[weight == 0]], [torch.zeros(128)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_nan_is_refused_wherever_it_stands(dtype):
    for place in (0, 63, 64, 1023):
        weight = torch.randn(16, 64).to(dtype)
        weight.view(-1)[place] = torch.nan
        for act in (parse("2:4").largest, parse("2:4").project, parse("16:32").largest):
            with pytest.raises(ValueError, match="Scores hold 1 NaN of 1024"):
                act(weight)
    for w, r in ((weight.float(), torch.ones(16, 64)), (torch.ones(16, 64), weight.float())):
        with pytest.raises(ValueError, match="NaN"):
            weight_ops.admm_update(w, r, parse("2:4"), False, True)


@pytest.mark.parametrize("recipe", recipes.names())
def test_a_training_is_the_same_in_both_tiers(recipe):
    (model, engine), (other, other_engine) = trained(short(recipe)), in_torch(lambda: trained(short(recipe)))
    assert same(engine.state_dict(), other_engine.state_dict())
    engine.finish()
    in_torch(other_engine.finish)
    assert same(model.state_dict(), other.state_dict())


# Processes and threads


@pytest.mark.parametrize("text", ["2:4", "4:8-transposable", "unstructured:0.5"])
def test_threads_change_no_mask_and_are_as_many_as_torch_uses(text, monkeypatch):
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "MIN_NUMEL", 0)
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 2**10)
    scores = torch.randn(64, 512)
    alone, before = solve(scores, parse(text)), threading.active_count()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nxm_hf")] or text != "2:4"
    torch.set_num_threads(3)
    try:
        assert torch.equal(solve(scores, parse(text)), alone)
    finally:
        torch.set_num_threads(1)
    assert threading.active_count() <= before + 2


def run(code: str, **environment) -> None:
    """Run code in a Python of its own."""
    head = "import os, sys, torch\ntorch.manual_seed(0)\n"
    words = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, "-c", head + code], env=words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_fork_has_threads_of_its_own():
    run("""
from torch.utils.data import DataLoader
from nxm_hf.patterns import parse
from nxm_hf.solvers import solve
torch.set_num_threads(2)
scores, pattern = torch.randn(2048, 1024), parse("2:4")
mask = solve(scores, pattern).numpy()
if not (child := os.fork()):  # where torch's own threads, of OpenMP, would wait for ever: hence NumPy
    os._exit(0 if (solve(scores, pattern).numpy() == mask).all() else 7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
for batch in DataLoader(list(range(8)), batch_size=4, num_workers=2, multiprocessing_context="fork"):
    assert (solve(scores, pattern).numpy() == mask).all()
""")


def test_numba_is_asked_for_by_large_weights_only_and_needs_no_place_on_disk():
    run("""
import nxm_hf
from nxm_hf.patterns import parse
parse("2:4").project(torch.randn(64, 64))
assert "numba" not in sys.modules and "llvmlite" not in sys.modules
from numba.core import caching
caching.CacheImpl._locator_classes = []
scores = torch.randn(256, 256)
for text in ("2:4", "unstructured:0.5"):
    assert int(parse(text).mask(scores).sum()) == 2**15
assert "nxm_hf.solvers.cpu.unstructured" in sys.modules
""")


def test_without_numba_torch_gives_the_masks():
    run("""
sys.modules["numba"] = sys.modules["llvmlite"] = None
from nxm_hf.patterns import parse
from nxm_hf.solvers import choose
scores = torch.randn(256, 256)
for text in ("2:4", "4:8-transposable", "unstructured:0.5"):
    assert choose(scores, parse(text)).__name__ in ("by_counting", "by_duals", "by_threshold")
    assert int(parse(text).mask(scores).sum()) == 2**15
""")


FAULTS = {
    "2:4": ("group_kernel", lambda w: parse("2:4").mask(w)),
    "largest 2:4": ("group_kernel", lambda w: parse("2:4").largest(w)),
    "project 2:4": ("group_kernel", lambda w: parse("2:4").project(w)),
    "admm 2:4": ("group_kernel", lambda w: weight_ops.admm_update(w, w.flip(0), parse("2:4"), False, True)),
    "remask 2:4": ("group_kernel", lambda w: weight_ops.remask(w, w > 0, w.clone(), parse("2:4"))),
    "4:8-transposable": ("tile_kernel", lambda w: parse("4:8-transposable").mask(w)),
    "unstructured": ("highest_of_row", lambda w: parse("unstructured:0.5").mask(w)),
}


@pytest.mark.parametrize("fault", ["idle", "one bit", "raised"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_kernel_that_does_not_work_here_is_said_once_and_never_asked(name, fault, monkeypatch, caplog):
    """As on a machine whose compiler takes our vector code for something else, or refuses it."""

    from nxm_hf.solvers.cpu import launch

    place, act = FAULTS[name]
    whole = getattr(launch, place)

    def broken(*words):
        if fault == "raised":
            raise RuntimeError("LLVM has no such instruction")
        return (lambda *numbers: 0) if "kernel" in place else None

    def nearly(*words):
        if "kernel" not in place:
            whole(*words)
            return words[-1].logical_xor_(torch.arange(words[-1].numel()) < 2)
        kernel = whole(*words)

        def run(first, last, x, y, *rest):
            found = kernel(first, last, x, y, *rest)
            at = ctypes.c_byte.from_address(x if "admm" in name or "remask" in name else y)
            at.value ^= 1
            return found

        return run

    cpu.BACKEND.self_tests.clear()
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    expected = in_torch(lambda: act(weight.clone()))
    monkeypatch.setattr(launch, place, nearly if fault == "one bit" else broken)
    try:
        for _ in range(2):
            assert torch.equal(act(weight.clone()), expected)
        said = [each.message for each in caplog.records if "does not work here" in each.message]
        assert said and len(said) == len(set(said)) and all("torch does its work" in each for each in said)
    finally:
        cpu.BACKEND.self_tests.clear()


def test_one_broken_kernel_leaves_the_others_in_use(monkeypatch, caplog):
    from nxm_hf.solvers.cpu import launch

    whole = launch.group_kernel
    monkeypatch.setattr(launch, "group_kernel", lambda task, n, m, *rest: whole(task, n if m == 4 else n + 1, m, *rest))
    cpu.BACKEND.self_tests.clear()
    chosen = [choose(torch.ones(64, 64), parse(text)).__name__ for text in ("2:4", "4:8", "2:4-transposable")]
    cpu.BACKEND.self_tests.clear()
    assert chosen == ["by_cpu_network", "by_network", "by_cpu_duals"] and caplog.text.count("mask of 4:8") == 1


def test_every_solver_of_the_fast_tier_is_the_first_of_its_kind():
    assert all(SOLVERS[kind][0] is solver for kind, solver in cpu.SOLVERS.items())
