"""Checkpoints that a disk does not take, and names of tied weights."""

import os
from contextlib import ExitStack

import pytest
import torch
from transformers import TrainerCallback

from nxm_hf.engine.kept_state import KeptState
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.solvers import base
from nxm_hf.solvers.masked_adamw import can_step_kept
from nxm_hf.storage.checkpoints import newest_complete
from nxm_hf.storage.write_errors import WriteError
from nxm_hf.trainer.whole_checkpoints import share_tied
from tests.support.file_operations import limited_files
from tests.support.models import make_model
from tests.support.training import SaveAt, make_trainer


class LimitFiles(TrainerCallback):
    """Has no file grow beyond a size once 3 steps are done."""

    def __init__(self, size: int, stack: ExitStack):
        self.size, self.stack = size, stack

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.stack.enter_context(limited_files(self.size))


@pytest.mark.skipif(os.name == "nt", reason="needs limits of files")
@pytest.mark.parametrize(("size", "named"), [(50_000, "The weights"), (140_000, r"\S+optimizer\.pt")])
def test_a_checkpoint_that_the_disk_does_not_take_is_named_and_passed_over(size, named, tmp_path):
    says = rf"^{named}.* could not be written: .*checkpoint-4 is not complete, and resume_from_checkpoint=True passes"
    with ExitStack() as stack, pytest.raises(WriteError, match=says):
        make_trainer(tmp_path, "asp", callbacks=[LimitFiles(size, stack), SaveAt(2, 4)]).train()
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-2")
    make_trainer(tmp_path, "asp", callbacks=[SaveAt(8)]).train(resume_from_checkpoint=True)
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-8")


@pytest.mark.skipif(not can_step_kept(), reason="moments of kept entries need numba and AVX-512")
def test_moments_stay_packed_when_a_checkpoint_is_saved_and_its_file_is_that_of_dense_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    trainer = make_trainer(tmp_path, "asp", callbacks=[SaveAt(8)])
    trainer.train()
    optimizer = unwrapped(trainer.optimizer)
    packed = [state for state in optimizer.state.values() if isinstance(state, KeptState)]
    assert packed and all(state.is_packed for state in packed)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert (tmp_path / "optimizer.pt").read_bytes() == (tmp_path / "checkpoint-8" / "optimizer.pt").read_bytes()


def test_all_names_of_a_tied_weight_get_one_tensor():
    model = make_model("gpt2")
    gathered = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    others = {name: tensor for name, tensor in gathered.items() if name != "lm_head.weight"}
    share_tied(torch.compile(model), gathered)
    assert gathered["lm_head.weight"] is gathered["transformer.wte.weight"]
    assert all(gathered[name] is tensor for name, tensor in others.items())
