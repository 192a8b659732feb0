"""Beginning: `asp` with the scores of a method that looks at data is `prune` on rows of that data, and then `asp`."""

import random

import numpy
import pytest
import torch
from conftest import assert_equal_weights, make_arguments, make_bert, make_rows
from loops import Toy, adamw, same, weights
from resuming import ROWS, SaveAt, assert_same_end, make_trainer
from torch.utils.data import DataLoader, IterableDataset

from nxm_hf import NxMConfig, NxMTrainer, attach, oneshot, prune, verify
from nxm_hf.layers import find_layers
from nxm_hf.pruning.beginning import prune_first

KINDS = ("NxMTrainer", "NxMCallback")
BY_DATA = [name for name in oneshot.names() if name != "magnitude"]


def scored(method: str, pattern: str = "2:4", **words) -> NxMConfig:
    return NxMConfig("asp", pattern, {"scores": method}, **words)


def batches_of(rows: list) -> list[dict[str, torch.Tensor]]:
    """Eight rows at a time, in order: what calibration is to see of so few."""
    return [
        {name: torch.stack([row[name] for row in rows[begin : begin + 8]]) for name in rows[0]}
        for begin in range(0, len(rows), 8)
    ]


@pytest.mark.parametrize("method", oneshot.names())
def test_scores_are_prune_on_the_rows_of_the_training_and_then_asp(method, tmp_path):
    """Bit for bit: data come in the order, and dropout falls, as if nothing had been before the training."""
    by_hand, words = make_bert(), dict(exclude=["key"], pattern="1:4")
    prune(by_hand, method=method, calibration=batches_of(ROWS), **words)
    start = {name: tensor.clone() for name, tensor in by_hand.state_dict().items()}
    short = dict(
        max_steps=4, save_steps=4, gradient_accumulation_steps=1
    )  # without accumulation both kinds train alike
    make_trainer(tmp_path / "hand", NxMConfig("asp", **words), model=by_hand, **short).train()
    for kind in KINDS if method == "sparsegpt" else KINDS[:1]:
        trainer = make_trainer(tmp_path / kind, scored(method, **words), kind, **short)
        trainer.train()
        assert_equal_weights(trainer.model, by_hand)
    assert any(not torch.equal(start[name], tensor) for name, tensor in by_hand.state_dict().items())
    assert verify(by_hand).ok and NxMConfig.from_pretrained(tmp_path / "NxMTrainer/checkpoint-4").pruned_by == (
        None if method == "magnitude" else method
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_is_the_unbroken_one_and_prunes_nothing(kind, tmp_path, monkeypatch):
    config = scored("sparsegpt", settle=0.25)
    whole = make_trainer(tmp_path / "whole", config, kind, callbacks=[SaveAt(3, 8)])
    whole.train()
    monkeypatch.setattr("nxm_hf.pruning.beginning.prune", None)
    place = tmp_path / "whole" / "checkpoint-3"
    again = make_trainer(tmp_path / "again", config, kind, 5, callbacks=[SaveAt(8)], resume_from=place)
    again.train(resume_from_checkpoint=str(place))
    assert_same_end(whole, again, 3)


def test_the_config_survives_json_and_belongs_to_one_recipe():
    config = scored("alps", settle=0.2)
    assert NxMConfig.from_dict(config.to_dict()) == config and config.pruned_by == "alps"
    assert NxMConfig("asp").changed(scores="wanda").pruned_by == "wanda"
    assert NxMConfig("admm").pruned_by is config.keeping_masks().pruned_by is NxMConfig("asp").pruned_by is None


class Noisy(list):
    """Rows that draw, as those that are augmented do."""

    def __getitem__(self, number):
        torch.rand(1), random.random(), numpy.random.rand()
        return {name: tensor for name, tensor in super().__getitem__(number).items() if name != "labels"}


def test_what_rows_and_collators_draw_is_given_back():
    rows, states = Noisy(make_rows()), []

    def collate(chosen):
        seen.append(chosen)
        return {name: torch.stack([row[name] for row in chosen])[:, torch.randperm(8)] for name in chosen[0]}

    models = [make_bert(), make_bert()]
    for model in models:
        torch.manual_seed(3), random.seed(3), numpy.random.seed(3)
        seen = []
        prune_first(model, scored("wanda"), DataLoader(rows, 4, shuffle=True, collate_fn=collate))
        states.append((torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()))
        torch.manual_seed(3), random.seed(3), numpy.random.seed(3)
        states.append((torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()))
        assert [len(chosen) for chosen in seen] == [8] * 8
    assert all(state == states[0] for state in states)
    assert_equal_weights(*models)


def test_of_many_rows_a_hundred_and_twenty_eight_from_all_over_are_read():
    read = []

    class Numbered(list):
        def __getitem__(self, number):
            read.append(number)
            return {"input_ids": torch.tensor([number % 50, number // 50])}

    prune_first(make_bert(), scored("wanda"), DataLoader(Numbered(range(1000)), 4, shuffle=True))
    assert read == [number * 1000 // 128 for number in range(128)]


def test_a_model_that_holds_its_pattern_stays_as_it_is_and_no_row_is_read():
    model, before = make_bert(), make_bert()
    prune(model, "2:4")
    prune(before, "2:4")
    prune_first(model, scored("sparsegpt"), None)
    assert_equal_weights(model, before)
    prune_first(model, scored("sparsegpt", "1:4"), DataLoader(make_rows(), 4))
    assert verify(model, "1:4").ok


def test_a_training_that_is_begun_twice_prunes_once(tmp_path):
    trainer = make_trainer(tmp_path, scored("sparsegpt"), max_steps=2)
    trainer.train()
    masks = [layer.weight != 0 for layer in find_layers(trainer.model)]
    trainer.train()
    now = [layer.weight != 0 for layer in find_layers(trainer.model)]
    assert all(torch.equal(*pair) for pair in zip(now, masks, strict=True))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_scores_and_a_warm_up_are_refused_when_the_config_is_made():
    with pytest.raises(ValueError, match=r'prunes before the first step.*got warmup=0\.1.*recipe="dense" first'):
        scored("wanda", warmup=0.1)
    assert NxMConfig("asp", warmup=0.1).warmup == 0.1


@pytest.mark.parametrize("method", BY_DATA)
def test_a_loop_of_ones_own_is_told_to_prune_first(method):
    model = Toy()
    with pytest.raises(ValueError, match=rf'nxm_hf\.prune\(model, \'2:4\', "{method}", calibration\) before attach'):
        attach(model, adamw(model), scored(method), total_steps=3)
    assert all(weight.count_nonzero() == weight.numel() for weight in weights(model))
    prune(model, "2:4", method, [{"x": torch.randn(40, 8)}])
    before = weights(model)
    attach(model, adamw(model), scored(method), total_steps=3)
    assert same(weights(model), before)


def test_a_stream_has_no_rows_to_look_at_and_that_is_said(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(make_rows())

    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path), train_dataset=Stream(), sparsity=scored("wanda"))
    with pytest.raises(ValueError, match=r'by their number, and .* has none.*nxm_hf\.prune\(model, pattern, "wanda"'):
        trainer.train()
