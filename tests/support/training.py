"""Trainers over tiny trainings, of every kind, and the comparison of what two trainings leave behind."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from nxm_hf import Engine, NxMCallback, NxMConfig, NxMTrainer, recipes
from nxm_hf.layers.find import find_layers
from nxm_hf.storage.state_file import read_state
from tests.support.models import make_arguments, make_bert, make_rows

KINDS = ("NxMTrainer", "NxMCallback")
ARGUMENTS = {field.name for field in dataclasses.fields(TrainingArguments)}
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
TIMES = ("runtime", "per_second")  # the ends of the names of times in a log

STEPS = 8  # two epochs of 4 steps; warm-up ends at 2, events fall on every second step, the mask is frozen from 6 on
OFTEN = {"refresh": 2, "every": 2, "steps": 2, "period": 0.25}  # the settings that make events of a recipe frequent
ROWS = make_rows(32)
SHORT = dict(
    max_steps=STEPS,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    save_steps=1,
    logging_steps=2,
    learning_rate=1e-2,
)


def eventful(recipe: str, **changes) -> NxMConfig:
    """Return a recipe with a warm-up before it, a frozen mask after it, and an event at every second step between."""
    settings = {name: value for name, value in OFTEN.items() if name in recipes.settings(recipe)}
    return NxMConfig(recipe, **{**dict(settings=settings, warmup=0.25, settle=0.25), **changes})


class SaveAt(TrainerCallback):
    """Saves at these steps, and at no others."""

    def __init__(self, *steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


class StopAt(TrainerCallback):
    """Ends a training at this step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class RecordGradients(TrainerCallback):
    """Copies the gradients of each step, as they are before the optimizer steps."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class InterruptAt(TrainerCallback):
    """Raises KeyboardInterrupt, as Ctrl-C does, at one event, when `step` steps are done."""

    def __init__(self, step: int, event: str = "on_step_end"):
        self.step = step
        setattr(self, event, self._interrupt)

    def _interrupt(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def batches_of(rows: list) -> list[dict[str, torch.Tensor]]:
    """Return the rows in order, eight to a batch, as pruning in the middle of a training reads so few."""
    return [
        {name: torch.stack([row[name] for row in rows[begin : begin + 8]]) for name in rows[0]}
        for begin in range(0, len(rows), 8)
    ]


def make_trainer(
    folder,
    sparsity=None,
    kind="NxMTrainer",
    begin=0,
    callbacks=(),
    resume_from=None,
    model=None,
    rows=ROWS,
    arguments=SHORT,
    base=Trainer,
    **changes,
):
    """Make a trainer of a tiny BERT, by default for a training of 8 steps that passes through every phase.

    Args:
        folder: `output_dir`.
        sparsity: the config, or the name of a recipe.
        kind: "NxMTrainer", "NxMCallback" (in a Trainer), or "Trainer" (a plain one; `sparsity` is ignored).
        begin: the seed of the weights that the model begins with.
        callbacks: callbacks before ours.
        resume_from: for "NxMCallback".
        model: another model.
        rows: the training data, whose first quarter is the evaluation data.
        arguments: the arguments by default.
        base: the class of the Trainer, for "NxMCallback".
        changes: arguments of TrainingArguments, and of the Trainer.
    """
    options = {name: changes.pop(name) for name in list(changes) if name not in ARGUMENTS}
    if "model_init" not in options:
        options["model"] = make_bert(begin) if model is None else model
    args = make_arguments(folder, **{**arguments, **changes})
    options = dict(args=args, train_dataset=rows, eval_dataset=rows[: len(rows) // 4]) | options
    torch.manual_seed(1000 + begin)
    if kind == "NxMTrainer":
        return NxMTrainer(**options, sparsity=sparsity, callbacks=list(callbacks))
    ours = [NxMCallback(sparsity, resume_from=resume_from)] if kind == "NxMCallback" else []
    return base(**options, callbacks=[*callbacks, *ours])


make_12_step_trainer = partial(make_trainer, rows=make_rows(), arguments={})


def first_step(folder, sparsity, model, times: int = 1, **changes) -> tuple[Trainer, dict[str, torch.Tensor], float]:
    """Train one step over 8 rows, in `times` parts; return the trainer, the gradients and the logged loss."""
    recorder = RecordGradients()
    step = dict(max_steps=1, logging_steps=1, save_strategy="no", max_grad_norm=0.0)
    step |= dict(per_device_train_batch_size=8 // times, gradient_accumulation_steps=times)
    trainer = make_12_step_trainer(folder, sparsity, model=model, callbacks=[recorder], **{**step, **changes})
    trainer.train()
    return trainer, recorder.gradients[0], trainer.state.log_history[0]["loss"]


def engine_of(trainer: Trainer) -> Engine:
    """Return the engine of a trainer of either kind."""
    if isinstance(trainer, NxMTrainer):
        return trainer.engine
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, NxMCallback)).engine


def trained_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copy the weights that the optimizer trains, by layer."""
    return {target.name: weight.clone() for target, weight in engine_of(trainer).trained_weights()}


def pruned_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy the weights of the layers that can be pruned, by layer."""
    return {layer.name: layer.weight.detach().clone() for layer in find_layers(model)}


def is_sparse(model: torch.nn.Module, n: int = 2, m: int = 4) -> bool:
    """Return True if every layer keeps at most n of m consecutive inputs; counted without the library's patterns."""
    counts = [(weight.unflatten(1, (-1, m)) != 0).sum(-1).max() for weight in pruned_weights(model).values()]
    return max(counts) <= n


# -- comparing -----------------------------------------------------------------------------------------------------


def contents(checkpoint) -> dict:
    """Read all that a checkpoint holds, except times and places."""
    checkpoint = Path(checkpoint)
    parts = {"model.safetensors": load_file(checkpoint / "model.safetensors")}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        parts[name] = torch.load(checkpoint / name, weights_only=False)
    if (checkpoint / "nxm_state.safetensors").is_file():
        parts["header"], parts["nxm_state"] = read_state(checkpoint)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    parts["global_step"], parts["epoch"] = state["global_step"], state["epoch"]
    return parts


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


def without_times(history: list[dict]) -> list[dict]:
    """Copy the records of a log without what they say of the time of day."""
    return [{key: value for key, value in record.items() if not key.endswith(TIMES)} for record in history]


def records(history: list[dict], begin: int = 0) -> list[dict]:
    """Copy the records after step `begin`, without times, and without a loss that is a mean over earlier steps too."""
    later = [record for record in history if record["step"] > begin and "train_runtime" not in record]
    for record in (copies := without_times(later)):
        if record["step"] - 2 < begin:
            record.pop("loss", None)
    return copies


def assert_same_end(one: Trainer, other: Trainer, begin: int) -> None:
    """Raise unless two trainings ended alike, the second of which was resumed at step `begin`."""
    ends = [
        contents(Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}") for trainer in (one, other)
    ]
    assert_same(*ends)
    assert_same(dict(one.model.state_dict()), dict(other.model.state_dict()), "the model in memory")
    expected = records(one.state.log_history, begin)
    assert records(other.state.log_history, begin) == expected
    assert any("loss" in record for record in expected) or begin > STEPS - 2
