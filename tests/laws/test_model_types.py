"""Model types: what trains, saves and resumes for BERT does so for every kind of model, bit for bit."""

import pytest
from transformers import CONFIG_MAPPING

from nxm_hf import prune, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.packing import is_converted
from nxm_hf.storage.model_files import load_model
from tests.support.model_types import MIXTURES, MODEL_TYPES, REFUSED
from tests.support.models import assert_equal_weights
from tests.support.training import KINDS, assert_same, contents, make_trainer
from tests.support.versions import OLD

TWO_STEPS = dict(max_steps=2, per_device_train_batch_size=2, save_steps=1, logging_steps=1, learning_rate=1e-2)
HERE = [kind for kind in MODEL_TYPES if kind.name in CONFIG_MAPPING]
# Families that transformers saves under other names than they have in memory, in one piece and in several.
CONVERTED = [kind for kind in HERE if kind.name in ("vit", "swin", "nomic_bert", "mixtral", "qwen3_moe")]


def make(kind, folder, seed=0, trainer="NxMTrainer", **changes):
    """Return a trainer of two steps on a model of this type, which begins with the weights of a seed."""
    words = dict(model=kind.model(seed), rows=kind.rows(4), arguments=TWO_STEPS)
    return make_trainer(folder, "ste", trainer, **{**words, **changes})


def assert_resumes(kind, folder, trainer="NxMTrainer"):
    """Train two steps, resume from the first in a model that begins with other weights, and compare the ends."""
    whole, again = folder / "whole", folder / "again"
    unbroken = make(kind, whole, trainer=trainer)
    unbroken.train()
    resumed = make(kind, again, 7, trainer, resume_from=whole / "checkpoint-1")
    resumed.train(resume_from_checkpoint=str(whole / "checkpoint-1"))
    assert_same(contents(whole / "checkpoint-2"), contents(again / "checkpoint-2"))
    assert_same(dict(unbroken.model.state_dict()), dict(resumed.model.state_dict()), "in memory")
    return unbroken


@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")  # of EncoderDecoderModel, at every loss
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # of the same in transformers 4.57
@pytest.mark.parametrize("kind", HERE, ids=str)
def test_a_model_of_every_type_trains_saves_loads_verifies_and_resumes_bit_for_bit(kind, tmp_path):
    trainer = assert_resumes(kind, tmp_path)
    saved = tmp_path / "whole" / "checkpoint-2"
    found = verify(saved)
    assert found.ok and {layer.name for layer in found.layers} == {layer.name for layer in find_layers(trainer.model)}
    assert_equal_weights(load_model(saved), trainer.model)


@pytest.mark.parametrize("kind", CONVERTED, ids=str)
def test_the_callback_restores_what_a_plain_trainer_does_not(kind, tmp_path):
    assert_resumes(kind, tmp_path, "NxMCallback")


@pytest.mark.parametrize("trainer", KINDS)
@pytest.mark.parametrize("kind", CONVERTED, ids=str)
def test_the_best_model_is_loaded_under_its_saved_names(kind, trainer, tmp_path):
    seen = []

    def score(prediction):
        seen.append(float(prediction.predictions[0].sum()))
        return {"first": float(len(seen) == 1)}

    words = dict(eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="first")
    run = make(kind, tmp_path, trainer=trainer, compute_metrics=score, **words)
    run.train()
    assert run.state.best_global_step == 1
    assert_equal_weights(load_model(tmp_path / "checkpoint-1"), run.model)
    assert verify(run.model).ok


@pytest.mark.parametrize("kind", [kind for kind in MIXTURES if kind in HERE], ids=str)
def test_a_mixture_of_experts_is_pruned_saved_and_verified(kind, tmp_path):
    model = kind.model(0)
    result = prune(model, "2:4")
    model.save_pretrained(tmp_path)
    found = verify(tmp_path)
    assert found.ok and found.density == 0.5 and len(found.layers) == len(result.layers)


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_cannot_be_pruned_is_refused_in_a_sentence(name, tmp_path):
    kind, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        make(kind, tmp_path)


def test_the_law_holds_for_many_types_of_every_kind():
    assert len({kind.name for kind in HERE}) >= 45
    assert OLD or any(is_converted(kind.model(0)) for kind in CONVERTED)  # more of them in each version of transformers
