"""Rewinding: the mask of the end on the weights of the beginning, and the training that keeps it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainerCallback

from nxm_hf import NxMConfig, NxMTrainer, SparsityRecord, rewind, verify
from nxm_hf.cli.main import main
from nxm_hf.layers.find import find_layers
from nxm_hf.storage.state_file import read_state
from tests.support.models import make_arguments, make_bert, make_rows
from tests.support.references import top
from tests.support.training import make_12_step_trainer

QUERY = "bert.encoder.layer.0.attention.self.query"


def mask_of(weight: torch.Tensor, pattern: str = "2:4") -> torch.Tensor:
    """Return the mask of the largest weights of [out, in], by counting."""
    return top(weight.abs(), pattern)


def run(folder, model, steps=6, sparsity=None, callbacks=()):
    """Train with a checkpoint at each second step; without `sparsity`, in a plain Trainer."""
    kind = "Trainer" if sparsity is None else "NxMTrainer"
    short = dict(max_steps=steps, save_steps=2, logging_steps=steps)
    trainer = make_12_step_trainer(folder, sparsity, kind, model=model, callbacks=callbacks, **short)
    trainer.train()
    return trainer


class Fixed(TrainerCallback):
    """A training with a fixed mask, literally: no gradient for what is pruned, and zero after each step."""

    def __init__(self, model, masks):
        self.weights = [(layer.weight, masks[layer.name]) for layer in find_layers(model)]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for weight, mask in self.weights:
            weight.grad *= mask

    def on_optimizer_step(self, args, state, control, **kwargs):
        for weight, mask in self.weights:
            weight.data = torch.where(mask, weight.data, 0.0)


def test_train_rewind_and_retrain_is_the_lottery_ticket_literally(tmp_path):
    run(tmp_path / "dense", make_bert(), sparsity="dense").save_model(str(tmp_path / "end"))
    assert (
        main(["rewind", *(str(tmp_path / x) for x in ("end", "dense/checkpoint-2", "ticket")), "--pattern", "2:4"]) == 0
    )
    early, end = (load_file(tmp_path / name / "model.safetensors") for name in ("dense/checkpoint-2", "end"))
    masks = {x.name: mask_of(end[f"{x.name}.weight"]) for x in find_layers(make_bert())}

    ticket = BertForSequenceClassification.from_pretrained(tmp_path / "ticket")
    other = make_bert()
    other.load_state_dict(
        {k: v * masks.get(k.removesuffix(".weight"), torch.ones(1, dtype=bool)) for k, v in early.items()}
    )
    assert all(torch.equal(a, b) for a, b in zip(ticket.parameters(), other.parameters(), strict=True))

    ours = NxMTrainer(model=ticket, args=make_arguments(tmp_path / "ours", max_steps=4), train_dataset=make_rows())
    ours.train()
    run(tmp_path / "theirs", other, 4, callbacks=[Fixed(other, masks)])
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), other.parameters(), strict=True))
    weight = ours.model.get_submodule(QUERY).weight
    assert torch.equal(weight != 0, masks[QUERY]) and not torch.equal(
        weight, ticket.state_dict()[f"{QUERY}.weight"] * 0
    )


@pytest.mark.parametrize("recipe", ["ste", "admm", "sr-ste"])
def test_of_a_sparse_training_the_dense_weights_are_rewound_to(recipe, tmp_path):
    trainer = run(tmp_path, make_bert(), sparsity=NxMConfig(recipe, exclude="key", on_indivisible="skip"))
    trainer.save_model(str(tmp_path / "end"))
    report = rewind(tmp_path / "end", tmp_path / "checkpoint-2", tmp_path / "ticket")
    assert report.ok and report.density == 0.5 and verify(tmp_path / "ticket").ok
    _, state = read_state(tmp_path / "checkpoint-2")
    end, ticket = (load_file(tmp_path / name / "model.safetensors") for name in ("end", "ticket"))
    deployed = load_file(tmp_path / "checkpoint-2/model.safetensors")
    differs = 0
    for layer in report.layers:
        dense = state.get(f"{layer.name}/dense", state[f"{layer.name}/weight"])
        expected = torch.where(mask_of(end[f"{layer.name}.weight"]), dense, 0.0)
        assert torch.equal(ticket[f"{layer.name}.weight"], expected)
        differs += int((expected != deployed[f"{layer.name}.weight"]).sum())
    assert differs and len(report.layers) == 10
    assert all(
        torch.equal(v, deployed[k])
        for k, v in ticket.items()
        if k.removesuffix(".weight") not in {x.name for x in report.layers}
    )
    record = SparsityRecord.from_pretrained(tmp_path / "ticket")
    assert (record.config.recipe, record.config.exclude) == ("asp", ["key"])
    assert (len(record.layers), record.density) == (10, 0.5)


def test_a_transposed_weight_and_a_pattern_by_role_are_rewound_too(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
    )
    model.save_pretrained(tmp_path / "early")
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "end")
    rewind(tmp_path / "end", tmp_path / "early", tmp_path / "ticket", {"ffn": "1:4", "default": "2:4"})
    early, end, ticket = (load_file(tmp_path / x / "model.safetensors") for x in ("early", "end", "ticket"))
    for name, pattern in (("transformer.h.0.mlp.c_fc.weight", "1:4"), ("transformer.h.1.attn.c_attn.weight", "2:4")):
        assert torch.equal(ticket[name], torch.where(mask_of(end[name].t(), pattern).t(), early[name], 0.0))


def test_the_tokenizer_beside_the_checkpoint_comes_along_and_its_training_does_not(tmp_path):
    run(tmp_path, make_bert(), 2, sparsity="dense")
    (tmp_path / "checkpoint-2/tokenizer.json").write_text("{}")
    (tmp_path / "checkpoint-2/vocab.txt").write_text("a")
    rewind(tmp_path / "checkpoint-2", tmp_path / "checkpoint-2", tmp_path / "new/ticket", "2:4")
    found = {path.name for path in (tmp_path / "new/ticket").iterdir()}
    model = {"config.json", "model.safetensors", "nxm_config.json", "nxm_manifest.json", "README.md"}
    assert found == model | {"tokenizer.json", "vocab.txt"}
    rewind(tmp_path / "checkpoint-2", tmp_path / "checkpoint-2", tmp_path / "checkpoint-2/ticket", "2:4")
    assert {path.name for path in (tmp_path / "checkpoint-2/ticket").iterdir()} == found


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A dense and a sparse training."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder / "dense", make_bert(), 2, sparsity="dense")
    run(folder / "asp", make_bert(), 4, sparsity="asp")
    return folder


REFUSED = {
    "no pattern": ("dense/checkpoint-2", "dense/checkpoint-2", None, "no record of being sparse.* --pattern 2:4"),
    "two patterns": ("asp/checkpoint-4", "dense/checkpoint-2", "1:4", "sparse already, with 2:4, .* Leave pattern out"),
    "pruned": ("dense/checkpoint-2", "asp/checkpoint-2", "2:4", "is pruned in .*checkpoint-2 already, and its dense"),
    "absent": ("dense/checkpoint-2", "nowhere", "2:4", "nowhere"),
    "a pattern that does not fit": ("dense/checkpoint-2", "dense/checkpoint-2", "2:5", "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_ticket_is_an_error_and_writes_nothing(name, finished, tmp_path):
    trained, checkpoint, pattern, error = REFUSED[name]
    with pytest.raises((ValueError, OSError), match=error):
        rewind(finished / trained, finished / checkpoint, tmp_path / "ticket", pattern)
    assert not (tmp_path / "ticket").exists()


def test_a_directory_that_is_in_use_is_not_written_into(finished, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    early = str(finished / "dense/checkpoint-2")
    assert main(["rewind", early, early, str(tmp_path), "--pattern", "2:4"]) == 2
    assert "exists and is not empty. Name a new directory." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_checkpoint_of_another_model_is_an_error(finished, tmp_path):
    make_bert(num_hidden_layers=3).save_pretrained(tmp_path / "deeper")
    make_bert(intermediate_size=128).save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match=r"is not of the model in .* other layers are sparse there"):
        rewind(finished / "asp/checkpoint-4", tmp_path / "deeper", tmp_path / "ticket")
    with pytest.raises(ValueError, match=r"intermediate.dense is \(64, 32\) in .* and \(128, 32\) in the checkpoint"):
        rewind(finished / "asp/checkpoint-4", tmp_path / "wider", tmp_path / "ticket")
    with pytest.raises(ValueError, match=r"has no bert.encoder.layer.2"):
        rewind(finished / "dense/checkpoint-2", tmp_path / "deeper", tmp_path / "ticket", "2:4")


def test_files_of_two_checkpoints_are_not_mixed(tmp_path):
    run(tmp_path, make_bert(), 4, sparsity="ste")
    shutil.copy(tmp_path / "checkpoint-4/nxm_state.safetensors", tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=r"Files of two checkpoints may have been mixed"):
        rewind(tmp_path / "checkpoint-4", tmp_path / "checkpoint-2", tmp_path / "ticket")


def test_a_checkpoint_without_all_weights_is_an_error(finished, tmp_path):
    model = make_bert()
    model.bert.save_pretrained(tmp_path / "headless")
    words = json.loads((tmp_path / "headless/config.json").read_text())
    (tmp_path / "headless/config.json").write_text(
        json.dumps({**words, "architectures": ["BertForSequenceClassification"]})
    )
    with pytest.raises(ValueError, match=r"lacks classifier.bias, classifier.weight"):
        rewind(finished / "asp/checkpoint-4", tmp_path / "headless", tmp_path / "ticket")
