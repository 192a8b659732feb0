"""Hyperparameter search: keys that begin with `sparsity.` set the config of a trial."""

import pytest
from transformers import (
    TrainerCallback,
)

from nxm_hf import NxMConfig, verify
from tests.support.models import make_bert
from tests.support.training import make_12_step_trainer


def _search(trainer, space, trials=2, **changes):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return trainer.hyperparameter_search(hp_space=space, n_trials=trials, backend="optuna", sampler=sampler, **changes)


class Trials(TrainerCallback):
    """The configs that the trials were trained with."""

    def __init__(self):
        self.seen = []

    def on_train_end(self, args, state, control, model, **kwargs):
        stamp = getattr(model.config, "nxm_config", None)
        assert stamp is None or verify(model).ok
        self.seen.append((stamp and NxMConfig.from_dict(stamp), args.learning_rate))


@pytest.mark.slow
@pytest.mark.parametrize("load_best", [True, False])
def test_a_search_sets_the_recipe_of_each_trial(load_best, tmp_path):
    trials = Trials()
    words = dict(eval_strategy="steps", eval_steps=3, save_steps=3, max_steps=6, load_best_model_at_end=load_best)
    trainer = make_12_step_trainer(
        tmp_path,
        NxMConfig("admm", settings={"dual": False}),
        callbacks=[trials],
        model_init=lambda: make_bert(),
        **words,
    )
    asked = []

    def space(trial):
        asked.append(
            {
                "sparsity.rho": trial.suggest_float("sparsity.rho", 1e-4, 1e-1, log=True),
                "sparsity.warmup": trial.suggest_categorical("sparsity.warmup", [0.1, 0.2]),
                "sparsity.pattern": trial.suggest_categorical("sparsity.pattern", ["2:4", "1:4"]),
                "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2),
            }
        )
        if len(asked) == 1:
            asked[0]["sparsity.start"] = "B"  # of this trial alone
        return dict(asked[-1])

    best = _search(trainer, space, 3)
    assert len(trials.seen) == 3 and len({ask["sparsity.rho"] for ask in asked}) == 3
    for ask, (config, rate) in zip(asked, trials.seen, strict=True):
        settings = {"dual": False} | {
            key: ask[f"sparsity.{key}"] for key in ("rho", "start") if f"sparsity.{key}" in ask
        }
        assert config == NxMConfig("admm", ask["sparsity.pattern"], settings, warmup=ask["sparsity.warmup"])
        assert rate == ask["learning_rate"]
    assert any(best.hyperparameters.items() <= ask.items() for ask in asked)
    assert verify(tmp_path / "run-2" / "checkpoint-6").ok


def test_the_objective_of_a_search_is_the_evaluation_alone(tmp_path):
    """The default objective sums the metrics of the evaluation, so that none of ours may be among them."""
    trainer = make_12_step_trainer(
        tmp_path, "ste", model_init=lambda: make_bert(), eval_strategy="steps", eval_steps=3, max_steps=3
    )
    best = _search(trainer, lambda trial: {"sparsity.refresh": trial.suggest_int("sparsity.refresh", 1, 2)}, 1)
    (evaluated,) = [record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record]
    assert best.objective == evaluated


def test_an_unknown_key_of_a_search_is_an_error_that_lists_the_right_ones(tmp_path):
    trainer = make_12_step_trainer(tmp_path, "admm", model_init=lambda: make_bert())
    with pytest.raises(ValueError, match=r"no 'roh' to set; the recipe 'admm' has rho, steps.*the config has.*settle"):
        _search(trainer, lambda trial: {"sparsity.roh": trial.suggest_float("sparsity.roh", 0.1, 0.2)})


@pytest.mark.slow
def test_a_search_may_choose_the_recipe_itself(tmp_path):
    trials = Trials()
    words = dict(eval_strategy="steps", eval_steps=3, max_steps=3, save_strategy="no")
    trainer = make_12_step_trainer(tmp_path, "dense", callbacks=[trials], model_init=lambda: make_bert(), **words)
    names = iter(("ste", "dense", "admm"))
    _search(trainer, lambda trial: {"sparsity.recipe": next(names)}, 3)
    assert [config and config.recipe for config, _ in trials.seen] == ["ste", None, "admm"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_a_trial_that_is_pruned_does_not_stop_the_search(recipe, tmp_path):
    """optuna's pruning ends a training from inside an evaluation, before the best model is loaded."""
    optuna = pytest.importorskip("optuna")

    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1 and trial.last_step >= 4

    words = dict(eval_strategy="steps", eval_steps=2, save_steps=2, max_steps=6, load_best_model_at_end=True)
    trials = Trials()
    trainer = make_12_step_trainer(tmp_path, recipe, callbacks=[trials], model_init=lambda: make_bert(), **words)
    space = lambda trial: {"sparsity.settle": trial.suggest_categorical("sparsity.settle", [0.1, 0.3])}  # noqa: E731
    best = _search(trainer, space, 3, pruner=Second())
    assert best.run_id in ("0", "2")
    assert len(trials.seen) == 3 and all(config for config, _ in trials.seen)
