"""Arguments of Trainer that a newcomer writes, and that Trainer answers with an error from its inside."""

import pytest
import torch
from transformers import BertForSequenceClassification, Trainer

from nxm_hf import NxMCallback, NxMTrainer
from nxm_hf.config.versions import takes_tokenizer
from nxm_hf.trainer.arguments import check_arguments
from tests.support.models import make_arguments, make_bert, make_rows, make_tokenizer

WRONG = {
    "a path as the model": (dict(model="bert"), "'bert' is a path. Load it with from_pretrained."),
    "a class as the model": (
        dict(model=BertForSequenceClassification),
        "Write BertForSequenceClassification.from_pretrained(...).",
    ),
    "a path as the arguments": (dict(args="runs"), "Write args=TrainingArguments('runs')."),
    "a dict as the arguments": (dict(args={"seed": 1}), "Write args=TrainingArguments('out')."),
    "one optimizer": (dict(optimizer=None), "Write optimizers=..."),
    "a typing error": (dict(sparsty="asp"), "Write sparsity=..."),
    "a field of the config": (dict(recipe="asp"), "Write sparsity=NxMConfig(recipe='asp')."),
    "a setting of a recipe": (dict(preview=True), "Write sparsity=NxMConfig('admm', settings={'preview': True})."),
    "an optimizer for a pair": (
        dict(optimizers=torch.optim.SGD([torch.ones(1)], lr=0.1)),
        "got a SGD. Write optimizers=(optimizer, None).",
    ),
    "a class of optimizers for a pair": (
        dict(optimizer_cls_and_kwargs=torch.optim.SGD),
        'got the class SGD. Write optimizer_cls_and_kwargs=(nxm_hf.AdamW, {"lr": 5e-5}).',
    ),
    "a name that is near nothing": (dict(magic=1), "It has model, args, data_collator,"),
    "a callback without a list": (dict(callbacks=NxMCallback("asp")), "Write callbacks=[NxMCallback(...)]."),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_argument_of_another_kind_or_name_is_answered_with_what_to_write(case, tmp_path):
    changes, answer = WRONG[case]
    given = dict(model=make_bert(), args=make_arguments(tmp_path), train_dataset=make_rows(), sparsity="asp")
    with pytest.raises(TypeError) as raised:
        NxMTrainer(**{**given, **changes})
    assert answer in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:`tokenizer` is deprecated:FutureWarning")
def test_the_old_name_of_the_tokenizer_is_taken_where_trainer_takes_it(tmp_path):
    given = dict(model=make_bert(), args=make_arguments(tmp_path), sparsity="asp", tokenizer=make_tokenizer())
    if not takes_tokenizer():
        with pytest.raises(TypeError, match=r"has no tokenizer=\. Write processing_class="):
            NxMTrainer(**given)
    else:
        assert NxMTrainer(**given).processing_class is given["tokenizer"]


def test_the_sparsity_is_not_taken_by_its_place():
    with pytest.raises(TypeError, match=r"Write sparsity='asp'\."):
        NxMTrainer(make_bert(), *[None] * 12, "asp")


def test_arguments_of_trainer_pass_by_place_and_by_name(tmp_path):
    check_arguments([make_bert(), make_arguments(tmp_path)], {"train_dataset": make_rows(), "callbacks": []})
    check_arguments([], {"model": None, "args": None, "model_init": make_bert})


def test_another_trainer_behind_it_gets_arguments_of_its_own(tmp_path):
    class Named(Trainer):
        def __init__(self, model: str, *args, flavour: str, **kwargs):
            super().__init__({"bert": make_bert()}[model], *args, **kwargs)
            self.flavour = flavour

    class SparseNamed(NxMTrainer, Named):
        pass

    trainer = SparseNamed("bert", make_arguments(tmp_path), flavour="sweet", sparsity="asp")
    assert trainer.flavour == "sweet" and trainer.sparsity.recipe == "asp"


def test_two_callbacks_in_one_trainer_are_refused(tmp_path):
    callbacks = [NxMCallback("asp"), NxMCallback("ste")]
    with pytest.raises(ValueError, match=r"two NxMCallbacks.*Leave the other out"):
        Trainer(make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), callbacks=callbacks)
