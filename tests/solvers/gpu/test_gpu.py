"""What only a GPU can show; skipped, with the reason, where there is none."""

import pytest
import torch

from nxm_hf import NxMConfig, NxMTrainer, patterns, recipes, verify
from nxm_hf.patterns import parse
from nxm_hf.solvers import base, choose, gpu, reference_only, self_test, solve, weight_ops
from nxm_hf.solvers.transposable_duals import by_duals
from tests.support.models import make_arguments, make_bert
from tests.support.scores import assert_holds, distributions, tiles_of
from tests.support.toy_training import same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("text", [text for kind in patterns.PATTERNS for text in kind.examples])
def test_a_mask_is_the_same_on_every_device(text):
    pattern = patterns.parse(text)
    shape = (80, 4 * 5 * 40)  # fits every group of the examples
    tied = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0)).float()
    for scores in (torch.randn(shape, generator=torch.Generator().manual_seed(1)).abs(), tied):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            given = scores.to(dtype)
            assert torch.equal(pattern.mask(given.cuda()).cpu(), pattern.mask(given)), dtype


@pytest.fixture
def kernels(monkeypatch):
    """The kernels of Triton, for tensors of any size; that one fails is an error here."""
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    assert gpu.BACKEND.unavailable() is None
    monkeypatch.setattr(self_test.logger, "warning", lambda *words: pytest.fail(str(words)))


def on_both(act, *tensors):
    """What an act finds and leaves, by kernels on the GPU, and by torch on the CPU: the same, bit for bit."""
    ours, theirs = [x.cuda() for x in tensors], [x.clone() for x in tensors]
    found = act(*ours)
    with reference_only():
        expected = act(*theirs)
    assert same([x.cpu() for x in ours], theirs)
    assert (found is None and expected is None) or same([found.cpu()], [expected])


@pytest.mark.parametrize("text", ["1:2", "2:4", "1:4", "3:4", "4:8", "8:16", "16:32", "31:32"])
def test_kernels_do_what_torch_does(text, kernels):
    pattern, shape = parse(text), (96, 416)
    for dtype in base.FLOATS:
        weight = self_test.difficult_numbers(96 * 416, dtype, "cpu", 0, self_test.EXTREMES).view(shape)
        assert choose(weight.cuda(), pattern).__name__ == "by_gpu_counting"
        on_both(lambda w: solve(w, pattern), weight)
        on_both(pattern.largest, weight)
        on_both(pattern.project, weight)
    w, r, other = (
        self_test.difficult_numbers(96 * 416, torch.float32, "cpu", i, self_test.EXTREMES[:-2]).view(shape)
        for i in range(3)
    )
    for first, dual in ((False, True), (True, True), (False, False)):
        on_both(lambda w, r, first=first, dual=dual: weight_ops.admm_update(w, r, pattern, first, dual), w, r)
    on_both(lambda w, m, d: weight_ops.remask(w, m, d, pattern), w, other > 0, r)
    on_both(weight_ops.keep, w, other > 0)
    w[95, 415] = torch.nan
    for act in (pattern.largest, pattern.project, lambda w: weight_ops.admm_update(w, r.cuda(), pattern, False, True)):
        with pytest.raises(ValueError, match="NaN"):
            act(w.cuda())


@pytest.mark.parametrize("text", ["2:4-transposable", "4:8-transposable", "8:16-transposable", "16:32-transposable"])
def test_transposable_masks_are_worth_the_same_on_every_device(text, kernels):
    pattern, m = parse(text), parse(text).m
    for name, scores in distributions(64, 224 // m * m).items():
        mask = by_duals(scores.cuda(), pattern).cpu()
        assert_holds(mask, pattern.n, m)
        with reference_only():
            other = by_duals(scores, pattern)
        ours, theirs = (tiles_of(scores.double() * kept, m).sum((1, 2)) for kept in (mask, other))
        assert bool((ours >= theirs - 1e-6 * theirs.abs()).all()), name


@pytest.mark.parametrize("recipe", [name for name in recipes.names() if name != "dense"])
def test_a_training_in_fp16_ends_sparse(recipe, rows, tmp_path):
    """Pitfall 8: the first steps overflow and are skipped."""
    arguments = make_arguments(tmp_path, use_cpu=False, fp16=True)
    trainer = NxMTrainer(
        make_bert(), arguments, train_dataset=rows, sparsity=NxMConfig(recipe, warmup=0.25, settle=0.25)
    )
    trainer.train()
    trainer.save_model(tmp_path / "end")
    assert verify(trainer.model).ok and verify(tmp_path / "end").ok
