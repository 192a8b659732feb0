"""The Trainer of a callback: trackers get the parameters and the metrics of the sparsity, in any order of callbacks."""

import pytest
from transformers import TrainerCallback

from nxm_hf import NxMCallback, NxMConfig
from nxm_hf.trainer.host_trainer import EarlyCallback, find_trainer, tracker_parameters
from tests.support.training import KINDS, make_12_step_trainer


class Tracker(TrainerCallback):
    """Reads what the trackers of transformers read, when they do."""

    def __init__(self):
        self.parameters, self.logs, self.saved = {}, [], []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.parameters = model.config.to_dict()
        assert '"sparsity.decay"' in model.config.to_json_string()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.saved += [key for key in model.config.to_dict() if key.startswith("sparsity.")]


@pytest.mark.parametrize("kind", KINDS)
def test_trackers_get_the_parameters_and_the_metrics_of_the_sparsity(kind, tmp_path):
    tracker = Tracker()
    config = NxMConfig("sr-ste", {"ffn": "1:4", "default": "2:4"}, {"decay": 1e-3}, warmup=0.25)
    trainer = make_12_step_trainer(tmp_path, config, kind, callbacks=[tracker], max_steps=4, logging_steps=2)
    trainer.train()
    expected = {"sparsity.recipe": "sr-ste", "sparsity.decay": 1e-3, "sparsity.grad_scale": 1.0}
    expected |= {"sparsity.pattern": {"ffn": "1:4", "default": "2:4"}, "sparsity.warmup": 0.25, "sparsity.settle": 0.0}
    assert expected.items() <= tracker.parameters.items()
    losses = [logs for logs in tracker.logs if "loss" in logs]
    assert len(losses) == 2 and all("nxm/density" in logs and "nxm/phase" in logs for logs in losses)
    logged = [record for record in trainer.state.log_history if "loss" in record]
    assert [logs["nxm/residual"] for logs in losses] == [record["nxm/residual"] for record in logged]
    assert not any("nxm/density" in logs for logs in tracker.logs if "loss" not in logs)
    assert tracker.saved == [], "the parameters are not saved with the model"


def test_a_callback_that_was_taken_out_reports_nothing_any_more(tmp_path):
    tracker = Tracker()
    trainer = make_12_step_trainer(tmp_path, "sr-ste", "NxMCallback", callbacks=[tracker], max_steps=2, logging_steps=1)
    trainer.train()
    trainer.remove_callback(NxMCallback)
    tracker.logs.clear()
    tracker.on_train_begin = lambda *args, **kwargs: None
    trainer.train()
    assert tracker.logs and not any("nxm/density" in logs for logs in tracker.logs)


def test_a_callback_that_was_added_later_reports_too_and_is_called_once(tmp_path):
    tracker = Tracker()
    tracker.on_train_begin = lambda *args, **kwargs: None
    trainer = make_12_step_trainer(tmp_path, "sr-ste", "Trainer", callbacks=[tracker], max_steps=3, logging_steps=1)
    trainer.add_callback(NxMCallback("sr-ste"))
    for _ in range(2):
        tracker.logs.clear()
        trainer.train()
        assert [("loss" in logs) == ("nxm/density" in logs) for logs in tracker.logs] == [True] * 4
        kinds = [type(each) for each in trainer.callback_handler.callbacks]
        assert kinds[0] is EarlyCallback and kinds.count(EarlyCallback) == kinds.count(NxMCallback) == 1


def test_no_trainer_is_found_where_none_calls():
    assert find_trainer() is None


def test_parameters_of_a_recipe_hold_its_defaults_and_the_phases_it_trains_with():
    parameters = tracker_parameters(NxMConfig("fix"))
    assert parameters["sparsity.settle"] == 0.5 and parameters["sparsity.grad_scale"] == 1.0
