"""What the tests of resuming share: a short training that passes through every phase, and what it leaves behind."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, recipes
from nxm_hf.storage.state_file import read_state
from tests.support.models import make_arguments, make_bert, make_rows

STEPS = 8  # two epochs of 4 steps; warm-up ends at 2, events fall on every second step, the mask is frozen from 6 on
OFTEN = {"refresh": 2, "every": 2, "steps": 2, "period": 0.25}  # whatever a recipe does now and then, it does here
ROWS = make_rows(32)
TIMES = ("runtime", "per_second")


def eventful(recipe: str, **changes) -> NxMConfig:
    """A recipe with a warm-up before it, a frozen mask after it, and an event at every second step between."""
    settings = {name: value for name, value in OFTEN.items() if name in recipes.settings(recipe)}
    return NxMConfig(recipe, **{**dict(settings=settings, warmup=0.25, settle=0.25), **changes})


class SaveAt(TrainerCallback):
    """Saves at these steps, and at no others."""

    def __init__(self, *steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


def make_trainer(folder, sparsity, kind="NxMTrainer", begin=0, callbacks=(), resume_from=None, model=None, **changes):
    """A trainer of the short training; `begin` is the seed of the weights its model begins with."""
    model = make_bert(begin) if model is None else model
    words = dict(max_steps=STEPS, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    words.update(save_steps=1, logging_steps=2, learning_rate=1e-2)
    given = dict(model=model, args=make_arguments(folder, **{**words, **changes}))
    given.update(train_dataset=ROWS, eval_dataset=ROWS[:8])
    torch.manual_seed(1000 + begin)
    if kind == "NxMTrainer":
        return NxMTrainer(**given, sparsity=sparsity, callbacks=list(callbacks))
    return Trainer(**given, callbacks=[*callbacks, NxMCallback(sparsity, resume_from=resume_from)])


def engine_of(trainer):
    """The engine at work in a trainer of either kind."""
    if isinstance(trainer, NxMTrainer):
        return trainer._bridge.engine
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, NxMCallback)).engine


def trained(trainer) -> dict[str, torch.Tensor]:
    """A copy of what the optimizer trains, by layer."""
    return {target.name: weight.clone() for target, weight in engine_of(trainer).trained_weights()}


def contents(checkpoint) -> dict:
    """All that a checkpoint says, but for times and places."""
    checkpoint = Path(checkpoint)
    found = {name: load_file(checkpoint / name) for name in ("model.safetensors",)}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        found[name] = torch.load(checkpoint / name, weights_only=False)
    if (checkpoint / "nxm_state.safetensors").is_file():
        found["header"], found["nxm_state"] = read_state(checkpoint)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    found["global_step"], found["epoch"] = state["global_step"], state["epoch"]
    return found


def assert_same(one, other, where="") -> None:
    """Raise unless two nests of dicts, lists, tensors and numbers are equal bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
        assert torch.equal(*bits), where
    elif hasattr(one, "tobytes"):
        assert one.tobytes() == other.tobytes(), where
    else:
        assert one == other, where


def records(history: list[dict], begin: int = 0) -> list[dict]:
    """The records after step `begin`, without times; without the loss where it is a mean over other steps too."""
    found = []
    for record in history:
        if record["step"] <= begin or "train_runtime" in record:
            continue
        kept = {key: value for key, value in record.items() if not key.endswith(TIMES)}
        if record["step"] - 2 < begin:
            kept.pop("loss", None)
        found.append(kept)
    return found


def assert_same_end(one, other, begin: int) -> None:
    """Raise unless two trainings ended alike, the second of them having been resumed at step `begin`."""
    ends = [
        contents(Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}") for trainer in (one, other)
    ]
    assert_same(*ends)
    assert_same(dict(one.model.state_dict()), dict(other.model.state_dict()), "the model in memory")
    expected = records(one.state.log_history, begin)
    assert records(other.state.log_history, begin) == expected
    assert any("loss" in record for record in expected) or begin > STEPS - 2
