"""The metrics of the weights that are in the model."""

import pytest
from huggingface_hub import ModelCard

from nxm_hf import NxMTrainer
from tests.support.models import make_arguments, make_bert, make_rows
from tests.support.training import KINDS, make_12_step_trainer

BEST = dict(max_steps=6, eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True)


def results_of(folder):
    results = ModelCard.load(folder / "README.md").data.eval_results or []
    return {result.metric_type: result.metric_value for result in results}


def falling(predicted, steps=iter(range(100))):  # noqa: B008 - one count for the whole training
    """Score each later evaluation worse than the one before."""
    return {"score": -float(next(steps))}


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_model_is_saved_with_its_own_metrics_and_a_later_evaluation_replaces_them(kind, tmp_path):
    best = dict(metric_for_best_model="score", compute_metrics=falling, greater_is_better=True)
    trainer = make_12_step_trainer(tmp_path, "ste", kind, **BEST, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    logged = [record for record in trainer.state.log_history if "eval_score" in record]
    trainer.save_model(tmp_path / "end")
    assert results_of(tmp_path / "end")["score"] == logged[0]["eval_score"] != logged[-1]["eval_score"]
    metrics = trainer.evaluate()
    trainer.save_model(tmp_path / "end")
    assert results_of(tmp_path / "end")["score"] == metrics["eval_score"]


def test_an_evaluation_of_the_training_view_is_not_that_of_the_saved_weights(tmp_path):
    trainer = NxMTrainer(
        make_bert(), make_arguments(tmp_path, max_steps=2), train_dataset=make_rows(), sparsity="sr-ste"
    )
    trainer.train()
    trainer.evaluate(make_rows()[:8], view="training")
    trainer.save_model(tmp_path / "end")
    assert results_of(tmp_path / "end") == {}
    metrics = trainer.evaluate(make_rows()[:8])
    trainer.save_model(tmp_path / "end")
    assert results_of(tmp_path / "end") == {"loss": metrics["eval_loss"]}


def test_each_of_several_datasets_has_its_results(tmp_path):
    parts = {"one": make_rows()[:8], "two": make_rows()[8:24]}
    trainer = make_12_step_trainer(tmp_path, "ste", max_steps=1, save_strategy="no", eval_dataset=parts)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(tmp_path / "end")
    assert results_of(tmp_path / "end") == {f"{name}_loss": metrics[f"eval_{name}_loss"] for name in parts}
