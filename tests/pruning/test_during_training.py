"""Beginning: what is pruned by rows of its training data, at first or in the middle, is `prune` and then `asp`."""

import random
from dataclasses import replace

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback

from nxm_hf import NxMConfig, NxMTrainer, attach, prune, pruners, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.plan import Plan
from nxm_hf.patterns import NM
from nxm_hf.pruning import blockwise
from nxm_hf.pruning.during_training import CalibratedPruner, _batches
from nxm_hf.recipes import CalibratedStart
from nxm_hf.storage.model_record import read_record
from tests.support.models import assert_equal_weights, make_arguments, make_bert, make_rows
from tests.support.toy_training import Toy, adamw, same, trained, weights
from tests.support.training import ROWS, SaveAt, StopAt, assert_same_end, batches_of, make_trainer

KINDS = ("NxMTrainer", "NxMCallback")
CALIBRATED_METHODS = [name for name in pruners.names() if name != "magnitude"]


def scored(method: str, pattern: str = "2:4", **words) -> NxMConfig:
    return NxMConfig("asp", pattern, {"scores": method}, **words)


def prune_by_rows(model, config: NxMConfig, loader) -> None:
    CalibratedPruner(Plan.of(model, config), config, config.calibrated_start, loader).prune()


@pytest.mark.parametrize("method", pruners.names())
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
    saved = NxMConfig.from_pretrained(tmp_path / "NxMTrainer/checkpoint-4")
    assert verify(by_hand).ok and saved.calibrated_start == (
        None if method == "magnitude" else CalibratedStart(method, "recipe")
    )


class Stamps(TrainerCallback):
    """What the model's config says of it before each step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.seen.append(read_record(model))


class PruneAt(TrainerCallback):
    """By hand, in a plain Trainer: at this step prune what has been trained, and keep the mask from there on."""

    def __init__(self, step: int, method: str, **words):
        self.step, self.words, self.masks = step, {"method": method, **words}, {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        for name, mask in self.masks.items():
            model.get_parameter(name).grad.masked_fill_(~mask, 0)

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, model, **kwargs):
        for name, mask in self.masks.items():
            model.get_parameter(name).masked_fill_(~mask, 0)

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            outcome = prune(model, **self.words)
            names = [f"{layer.name}.weight" for layer in outcome.layers]
            self.masks = {name: model.get_parameter(name).detach() != 0 for name in names}


DENSE_AND_PRUNED = {
    "after a warm-up": scored("sparsegpt", warmup=0.5),
    "where settling begins": NxMConfig("admm", settings={"rho": 0.0, "scores": "sparsegpt"}, settle=0.5),
}


@pytest.mark.parametrize("when", DENSE_AND_PRUNED)
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_middle_the_weights_of_the_last_dense_step_are_pruned(kind, when, tmp_path):
    """`admm` without a pull trains the dense weights until then, too."""
    words = dict(pattern="1:4", exclude=["key"])
    short = dict(max_steps=6, gradient_accumulation_steps=1, save_steps=6)
    by_hand = PruneAt(3, "sparsegpt", calibration=batches_of(ROWS), **words)
    arguments = make_arguments(tmp_path / "hand", per_device_train_batch_size=4, learning_rate=1e-2, **short)
    torch.manual_seed(1000)
    plain = Trainer(model=make_bert(), args=arguments, train_dataset=ROWS, callbacks=[by_hand])
    plain.train()
    stamps = Stamps()
    config = replace(DENSE_AND_PRUNED[when], **words)
    trainer = make_trainer(tmp_path / kind, config, kind, callbacks=[stamps], **short)
    trainer.train()
    assert stamps.seen == [None] * 6, "a model in training is not stamped as one to deploy"
    assert_equal_weights(trainer.model, plain.model)
    assert verify(trainer.model, "1:4").ok
    phases = [record["nxm/phase"] for record in trainer.state.log_history if "nxm/phase" in record]
    first = 0 if config.warmup else 1
    assert phases == [first, first + 1, first + 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup, begin", [(0.0, 3), (0.5, 2), (0.5, 4), (0.5, 5), (None, 2), (None, 4), (None, 5)])
def test_a_resumed_training_is_the_unbroken_one_and_prunes_only_once(kind, warmup, begin, tmp_path, monkeypatch):
    config = NxMConfig("admm") if warmup is None else scored("sparsegpt", warmup=warmup, settle=0.25)
    warmup = config.phases[1] if warmup is None else warmup
    whole = make_trainer(tmp_path / "whole", config, kind, callbacks=[SaveAt(begin, 8)])
    whole.train()
    if begin >= 8 * warmup:
        monkeypatch.setattr("nxm_hf.pruning.during_training.prune", None)
    place = tmp_path / "whole" / f"checkpoint-{begin}"
    again = make_trainer(tmp_path / "again", config, kind, 5, callbacks=[SaveAt(8)], resume_from=place)
    again.train(resume_from_checkpoint=str(place))
    assert_same_end(whole, again, begin)


@pytest.mark.parametrize("config", [scored("sparsegpt", warmup=0.9), NxMConfig("admm", settle=0.1)], ids=str)
def test_until_then_what_is_shown_is_pruned_without_looking_at_rows(config, tmp_path, monkeypatch):
    monkeypatch.setattr("nxm_hf.pruning.during_training.prune", None)
    trainer = make_trainer(tmp_path, config, max_steps=6, callbacks=[StopAt(3)])
    trainer.train()
    assert trainer.state.global_step == 3
    assert verify(trainer.model, "2:4").ok


def test_the_config_survives_json_and_belongs_to_one_recipe():
    config = scored("alps", settle=0.2)
    assert NxMConfig.from_dict(config.to_dict()) == config and config.calibrated_start.method == "alps"
    assert NxMConfig("asp").replace(scores="wanda").calibrated_start.method == "wanda"
    assert (
        NxMConfig("ste").calibrated_start
        is config.for_finetuning().calibrated_start
        is NxMConfig("asp").calibrated_start
        is None
    )


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
        prune_by_rows(model, scored("wanda"), DataLoader(rows, 4, shuffle=True, collate_fn=collate))
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

    prune_by_rows(make_bert(), scored("wanda"), DataLoader(Numbered(range(1000)), 4, shuffle=True))
    assert read == [number * 1000 // 128 for number in range(128)]


@pytest.mark.parametrize(
    ("length", "count", "rows"), [(64, 1000, 256), (8, 1000, 1000), (8, 3000, 2048), (200, 1000, 128), (8, 100, 100)]
)
def test_of_short_rows_so_many_are_read_that_they_have_as_many_tokens_as_long_ones(length, count, rows):
    """128 rows of 128 tokens are 16384; half of what rows of twice this length hold is padding."""
    read = set()

    class Padded(list):
        def __getitem__(self, number):
            read.add(number)
            ids = torch.arange(2 * length)
            return {"input_ids": ids % 50, "attention_mask": (ids < length).long()}

    loader, plan = DataLoader(Padded(range(count)), 4, shuffle=True), Plan.of(make_bert(), scored("wanda"))
    seen = sum(len(batch["input_ids"]) for batch in _batches(loader, plan, "wanda"))
    assert seen == rows and read >= {number * count // rows for number in range(rows)}


def test_a_model_that_holds_its_pattern_stays_as_it_is_and_no_row_is_read():
    model, before = make_bert(), make_bert()
    prune(model, "2:4")
    prune(before, "2:4")
    prune_by_rows(model, scored("sparsegpt"), None)
    assert_equal_weights(model, before)
    prune_by_rows(model, scored("sparsegpt", "1:4"), DataLoader(make_rows(), 4))
    assert verify(model, "1:4").ok


def test_a_training_that_is_begun_twice_prunes_once(tmp_path):
    trainer = make_trainer(tmp_path, scored("sparsegpt"), max_steps=2)
    trainer.train()
    masks = [layer.weight != 0 for layer in find_layers(trainer.model)]
    trainer.train()
    now = [layer.weight != 0 for layer in find_layers(trainer.model)]
    assert all(torch.equal(*pair) for pair in zip(now, masks, strict=True))


# -- admm and alps, which have it done where it can be ---------------------------------------------------------------

FREE = ("admm", "alps")


def with_scores(recipe: str, scores: str) -> NxMConfig:
    """Return the config that asks for the scores which a recipe chooses by itself."""
    if recipe == "alps":
        return NxMConfig("asp", settings={"scores": scores}, warmup=0.5)
    return admm(scores)


def admm(scores: str, **settings) -> NxMConfig:
    return NxMConfig("admm", settings={"scores": scores, **settings}, settle=0.5)


def test_admm_with_a_strength_of_ones_own_or_other_scores_looks_at_no_rows():
    assert NxMConfig("admm").calibrated_start == CalibratedStart("alps", "settle", required=False)
    assert NxMConfig("alps").calibrated_start == CalibratedStart("alps", "recipe", required=False)
    assert admm("wanda", rho=0.1).calibrated_start == CalibratedStart("wanda", "settle")
    for settings in ({"rho": 0.1}, {"penalty": "decoupled"}, {"scores": "fisher"}, {"scores": "magnitude"}):
        assert NxMConfig("admm", settings=settings).calibrated_start is None


def assert_ends_as(trainer, config: NxMConfig, folder, kind: str) -> None:
    """Raise unless a trainer has trained what it does with this config."""
    other = make_trainer(folder, config, kind)
    other.train()
    assert_equal_weights(trainer.model, other.model)
    assert verify(trainer.model).ok


@pytest.mark.parametrize("recipe", FREE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_is_pruned_by_alps_where_there_are_rows(kind, recipe, tmp_path, caplog):
    trainer = make_trainer(tmp_path / "auto", NxMConfig(recipe), kind)
    trainer.train()
    assert_ends_as(trainer, with_scores(recipe, "alps"), tmp_path / "alps", kind)
    assert "scores" not in caplog.text
    with pytest.raises(AssertionError):
        assert_ends_as(trainer, with_scores(recipe, "fisher"), tmp_path / "fisher", kind)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize("recipe", FREE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_goes_by_gradients_where_there_are_none_and_says_so(kind, recipe, tmp_path, caplog):
    def ends(config, folder):
        trainer = make_trainer(tmp_path / folder, config, kind)
        trainer.train_dataset = Stream()
        trainer.train()
        return trainer.model

    model = ends(NxMConfig(recipe), "auto")
    assert "alps needs a map-style dataset (with __getitem__ and __len__), but" in caplog.text
    assert 'using scores="fisher" instead' in caplog.text
    asked = caplog.text.split("Write ")[1].split(" to silence this warning")[0]
    assert eval(asked, {"NxMConfig": NxMConfig}).method(NM(2, 4)) == NxMConfig(recipe).method(NM(2, 4))
    assert_equal_weights(model, ends(with_scores(recipe, "fisher"), "fisher"))


@pytest.mark.parametrize("recipe", FREE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_pruned_by_rows_goes_on_as_it_was(kind, recipe, tmp_path, caplog, monkeypatch):
    """Half of the layers are pruned when it fails; then all go back, and gradients choose."""
    seen = []

    def breaking(target, *others):
        seen.append(target.name)
        if len(seen) > 6:
            raise RuntimeError("out of memory")
        return whole(target, *others)

    whole = blockwise._prune_layer
    with monkeypatch.context() as patch:
        patch.setattr(blockwise, "_prune_layer", breaking)
        trainer = make_trainer(tmp_path / "auto", NxMConfig(recipe), kind)
        trainer.train()
    assert len(seen) == 7
    assert 'alps could not prune this model (RuntimeError: out of memory); using scores="fisher" instead' in caplog.text
    assert_ends_as(trainer, with_scores(recipe, "fisher"), tmp_path / "fisher", kind)


def test_in_a_loop_of_ones_own_admm_goes_by_gradients():
    configs = NxMConfig("admm"), admm("fisher"), admm("magnitude")
    ours, fisher, magnitude = (weights(trained(config)[0]) for config in configs)
    assert same(ours, fisher) and not same(ours, magnitude)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [scored("wanda"), scored("wanda", warmup=0.5), admm("wanda")], ids=str)
def test_a_stream_has_no_rows_to_look_at_and_that_is_said_before_the_first_step(config, tmp_path):
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path), train_dataset=Stream(), sparsity=config)
    with pytest.raises(
        ValueError, match=r'needs a map-style dataset .*; Stream is not one.*nxm_hf\.prune\(model, pattern, "wanda"'
    ):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("method", CALIBRATED_METHODS)
def test_a_loop_of_ones_own_is_told_to_prune_first(method):
    model = Toy()
    with pytest.raises(ValueError, match=rf'nxm_hf\.prune\(model, \'2:4\', "{method}", calibration\) before attach'):
        attach(model, adamw(model), scored(method), total_steps=3)
    assert all(weight.count_nonzero() == weight.numel() for weight in weights(model))
    prune(model, "2:4", method, [{"x": torch.randn(40, 8)}])
    before = weights(model)
    with pytest.raises(ValueError, match=r"after a warm-up of 0\.5, .*before attach\(\.\.\.\) without a warm-up"):
        attach(model, adamw(model), scored(method, warmup=0.5), total_steps=3)
    assert same(weights(model), before)
    attach(model, adamw(model), scored(method), total_steps=3)
    assert same(weights(model), before)
    with pytest.raises(
        ValueError, match=rf'scores="{method}" needs training data, which is only .* use scores="fisher"'
    ):
        attach(model, adamw(model), admm(method), total_steps=3)


def test_what_settling_is_to_begin_with_needs_settling():
    with pytest.raises(ValueError, match=r"prunes with wanda when the frozen-mask phase starts, .* Write settle=0\.5"):
        NxMConfig("admm", settings={"rho": 0.1, "scores": "wanda"})
