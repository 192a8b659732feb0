"""The optimizer of NxMTrainer, also in front of Trainers that choose theirs by a method: sentence-transformers."""

import pytest
import torch
from transformers import Trainer

from nxm_hf import AdamW, NxMTrainer
from nxm_hf.engine.optimizer_state import unwrapped
from tests.support.models import assert_equal_weights, make_arguments, make_bert
from tests.support.training import ROWS

SHORT = dict(max_steps=3, save_strategy="no")


class TrainerWithLoss(Trainer):
    """Puts the parameters of its loss beside those of the model, as SentenceTransformerTrainer does."""

    def __init__(self, *args, **kwargs):
        self.loss = torch.nn.Linear(2, 2)
        super().__init__(*args, **kwargs)

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        cls, settings = super().get_optimizer_cls_and_kwargs(args, model)
        parameters = [*self.loss.parameters(), *self.model.parameters()]
        return cls, {**settings, "optimizer_dict": [{"params": parameters}]}


class SparseTrainerWithLoss(NxMTrainer, TrainerWithLoss):
    """As a user writes it."""


class StaticChoice(NxMTrainer):
    """Makes its optimizer as scripts for Trainer do, from the class."""

    def create_optimizer(self, *args, **kwargs):
        cls, settings = NxMTrainer.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = cls(self.model.parameters(), **settings)
        return self.optimizer


def train(kind, folder, **changes):
    sparsity = {} if kind is TrainerWithLoss else {"sparsity": "asp"}
    trainer = kind(make_bert(), make_arguments(folder, **{**SHORT, **changes}), train_dataset=ROWS, **sparsity)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", [NxMTrainer, StaticChoice, SparseTrainerWithLoss])
def test_the_fused_step_is_ours_however_the_host_chooses_its_optimizer(kind, tmp_path):
    assert type(unwrapped(train(kind, tmp_path, optim="adamw_torch_fused").optimizer)) is AdamW


def test_what_a_method_of_the_host_adds_for_the_optimizer_is_kept(tmp_path):
    trainer = train(SparseTrainerWithLoss, tmp_path, optim="adamw_torch_fused")
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in trainer.loss.parameters()} <= held


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_another_optimizer_that_is_asked_for_is_taken(optim, tmp_path):
    ours, _ = NxMTrainer.get_optimizer_cls_and_kwargs(make_arguments(tmp_path, optim=optim))
    theirs, _ = Trainer.get_optimizer_cls_and_kwargs(make_arguments(tmp_path, optim=optim))
    assert ours is theirs and ours is not AdamW


def test_the_weights_are_those_of_a_training_with_fused_adamw(tmp_path):
    ours = train(NxMTrainer, tmp_path, optim="adamw_torch_fused")
    model = make_bert()
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(make_arguments(tmp_path, optim="adamw_torch_fused"))
    args = make_arguments(tmp_path, **SHORT, optim="adamw_torch_fused")
    NxMTrainer(
        model, args, train_dataset=ROWS, sparsity="asp", optimizer_cls_and_kwargs=(cls, {**settings, "fused": True})
    ).train()
    assert_equal_weights(ours.model, model)
