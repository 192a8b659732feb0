"""What only a GPU can show; skipped, with the reason, where there is none."""

import pytest
import torch
from conftest import make_arguments, make_bert

from nxm_hf import NxMConfig, NxMTrainer, patterns, recipes, verify

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
