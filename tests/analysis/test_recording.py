"""AnalysisCallback: what is recorded is true, and recording changes nothing."""

import json
import random
import shutil

import numpy
import pytest
import torch
from transformers import Trainer, TrainerCallback

from nxm_hf import AnalysisCallback, NxMCallback, NxMConfig, NxMTrainer
from nxm_hf.analysis import recording
from nxm_hf.analysis.recording import ANALYSIS_FILE, FOLLOWED_WEIGHTS, decode_in_mask
from nxm_hf.report import read_runs
from nxm_hf.report.weight_charts import in_mask_counts, magnitude_by_count
from tests.support.models import assert_equal_weights, make_bert
from tests.support.report_runs import RECIPES, make_run_trainer, read_analysis, read_log, train_run
from tests.support.toy_training import trained


class Witness(TrainerCallback):
    """Looks at each logging step by itself: the two largest of four, by sorting."""

    def __init__(self, callback, slot):
        self.callback, self.slot, self.masks, self.residuals = callback, slot, {}, []

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.masks:
            self._look()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self._look()

    def _look(self):
        tensors = self.callback.engine.tensors()
        names = [name.removesuffix("/weight") for name in tensors if name.endswith("/weight")]
        dense = {name: tensors.get(f"{name}/dense", tensors[f"{name}/weight"]) for name in names}
        scored = {name: tensors[f"{name}/{self.slot}"] for name in names}
        # ADMM has one mask for each of its iterations, however often it is looked at.
        number = tensors[f"{names[0]}/updates"].item() if self.slot == "r" else len(self.masks)
        self.masks[number] = {name: _two_of_four(weight) for name, weight in scored.items()}
        self.residuals.append([_residual(weight) for weight in dense.values()])


def _two_of_four(weight):
    ranks = weight.detach().abs().unflatten(1, (-1, 4)).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (ranks < 2).flatten(1)


def _residual(weight):
    sizes = weight.detach().double().square().unflatten(1, (-1, 4)).sort(-1).values
    return (sizes[..., :2].sum() / sizes.sum()).sqrt().item()


@pytest.mark.parametrize(("recipe", "slot"), [("sr-ste", "dense"), ("admm", "r")])
def test_times_in_the_mask_and_residuals_are_those_of_an_independent_count(recipe, slot, tmp_path):
    ours = NxMCallback(NxMConfig(recipe, "2:4", **RECIPES[recipe]))
    witness = Witness(ours, slot)
    make_run_trainer(tmp_path, trainer_class=Trainer, callbacks=(witness, AnalysisCallback(), ours)).train()
    words, (run,) = read_analysis(tmp_path), read_runs([tmp_path])
    assert [record["step"] for record in words["records"]] == [0, 2, 4, 6, 8, 10, 12]
    found = in_mask_counts(run)
    assert len(witness.masks) == (5 if recipe == "admm" else 7)
    for name, layer in words["layers"].items():
        expected = sum(masks[name].flatten()[layer["index"]].int() for masks in witness.masks.values())
        assert found[name] == expected.tolist()
    for record, residuals in zip(words["records"], witness.residuals, strict=True):
        assert record["residual"] == pytest.approx(residuals, rel=1e-5)
    assert sum(weights for _, weights, _, _ in magnitude_by_count(run)) == 12 * FOLLOWED_WEIGHTS


def test_first_and_last_values_are_the_weights_and_the_excerpt_is_the_mask(tmp_path):
    model, folder = make_bert(), train_run(tmp_path)
    words = read_analysis(folder)
    for name, layer in words["layers"].items():
        weight = model.get_submodule(name).weight
        assert layer["first"] == weight.flatten()[layer["index"]].tolist()
        assert len(set(layer["index"])) == len(layer["index"]) == FOLLOWED_WEIGHTS
        deployed = type(model).from_pretrained(folder).get_submodule(name).weight.flatten()
        kept = decode_in_mask(words["records"][-1]["in_mask"][list(words["layers"]).index(name)], FOLLOWED_WEIGHTS)
        followed = deployed[layer["index"]].tolist()
        assert [value if is_kept else 0.0 for value, is_kept in zip(layer["last"], kept, strict=True)] == followed
        if name == words["excerpt"]["layer"]:
            rows = ["".join("01"[bit] for bit in row) for row in (deployed.view(weight.shape) != 0).tolist()]
            assert words["excerpt"]["rows"] == rows


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_weight_is_in_one_histogram_once(recipe, made):
    words = read_analysis(made[recipe])
    total = sum(a * b for a, b in (layer["shape"] for layer in words["layers"].values()))
    assert sum(words["magnitudes"]["kept"]) == sum(words["magnitudes"]["pruned"]) == total / 2


def test_flips_of_layers_add_up_to_the_flip_rate_of_the_log(made):
    words = read_analysis(made["sr-ste"])
    sizes = [a * b for a, b in (layer["shape"] for layer in words["layers"].values())]
    logged = {record["step"]: record["nxm/flip_rate"] for record in read_log(made["sr-ste"]) if "loss" in record}
    assert any(logged.values())
    for record in words["records"][1:]:
        flips = sum(size * share for size, share in zip(sizes, record["flips"], strict=True)) / sum(sizes)
        assert flips == pytest.approx(logged[record["step"]], rel=1e-9)


@pytest.mark.parametrize("kind", [NxMTrainer, Trainer])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_is_bit_for_bit_what_it_is_without_the_callback(kind, recipe, tmp_path):
    outcomes = []
    for number, mine in enumerate(([], [AnalysisCallback])):
        ours = [NxMCallback(NxMConfig(recipe, "2:4", **RECIPES[recipe]))] if kind is Trainer else []
        trainer = make_run_trainer(tmp_path / str(number), recipe, callbacks=[*mine, *ours], trainer_class=kind)
        trainer.train()
        chance = torch.rand(3).tolist(), random.random(), numpy.random.rand()
        log = [{k: v for k, v in r.items() if not k.endswith(("time", "second"))} for r in trainer.state.log_history]
        outcomes.append((trainer.model, chance, log))
    assert (tmp_path / "1" / ANALYSIS_FILE).is_file() and not (tmp_path / "0" / ANALYSIS_FILE).exists()
    assert_equal_weights(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1:] == outcomes[1][1:]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_training_leaves_the_file_of_an_unbroken_one(recipe, made, tmp_path):
    train_run(tmp_path, recipe)
    shutil.rmtree(tmp_path / "checkpoint-12")
    make_run_trainer(tmp_path, recipe).train(resume_from_checkpoint=True)
    assert read_analysis(tmp_path) == read_analysis(made[recipe])


def test_a_torn_file_is_begun_anew_by_a_resumed_training(tmp_path, caplog):
    train_run(tmp_path)
    (tmp_path / ANALYSIS_FILE).write_text('{"records": [')
    make_run_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert "is torn" in caplog.text
    assert [record["step"] for record in read_analysis(tmp_path)["records"]] == [6, 8, 10, 12]


def test_a_new_training_in_the_same_directory_begins_a_new_file(tmp_path, made):
    for _ in range(2):
        train_run(tmp_path)
    assert read_analysis(tmp_path) == read_analysis(made["sr-ste"])


def test_the_number_of_records_is_bounded_and_they_stay_evenly_spaced(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_RECORDS", 5)
    train_run(tmp_path, logging_steps=1)
    assert [record["step"] for record in read_analysis(tmp_path)["records"]] == [0, 4, 8, 12]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_not_finite_are_passed_over(value):
    model, engine = trained("admm", steps=3, total=12)
    words = recording.new_recording(engine, 0)
    recording.add_record(words, engine, 3)
    before = json.dumps(words, allow_nan=False)
    model.linears[1].weight.data[0, 0] = value
    recording.add_record(words, engine, 4)
    assert json.dumps(words, allow_nan=False) == before


def test_the_last_step_is_recorded_even_if_it_is_not_logged(tmp_path):
    train_run(tmp_path, logging_steps=5)
    assert [record["step"] for record in read_analysis(tmp_path)["records"]] == [0, 5, 10, 12]


@pytest.mark.parametrize("kind", [NxMTrainer, Trainer])
def test_a_training_without_sparse_layers_is_told_that_nothing_is_written(kind, tmp_path, caplog):
    make_run_trainer(tmp_path, "dense", trainer_class=kind).train()
    assert "AnalysisCallback writes nothing" in caplog.text and not (tmp_path / ANALYSIS_FILE).exists()
