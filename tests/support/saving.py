"""Saved models and checkpoints that tests of storage make and resume."""

import hashlib
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import Trainer

from tests.support.training import SaveAt, eventful, make_12_step_trainer, make_trainer


def train_two_steps(folder, model=None, sparsity="asp", **changes) -> Trainer:
    """Return a trainer after two steps without a checkpoint."""
    trainer = make_12_step_trainer(folder, sparsity, model=model, **{"max_steps": 2, "save_strategy": "no", **changes})
    trainer.train()
    return trainer


def make_resuming_trainer(folder, kind: str = "NxMTrainer", sparsity=None) -> Trainer:
    """Return a trainer that began with other weights, for a training with `admm` whose checkpoints are in a folder."""
    return make_trainer(folder, sparsity or eventful("admm"), kind, begin=5, callbacks=[SaveAt(8)])


def step_of(checkpoint: str | Path) -> int:
    """Return the number in the name of a checkpoint."""
    return int(Path(checkpoint).name.removeprefix("checkpoint-"))


def lose_a_bit(monkeypatch: pytest.MonkeyPatch, cls: type, method: str, ending: str) -> None:
    """Have a method that saves lose a bit of one tensor, as a disk does that fails: the files are whole."""
    save = getattr(cls, method)

    def lossy(self, folder, *args, **kwargs):
        result = save(self, folder, *args, **kwargs)
        for path in Path(folder).glob("**/model*.safetensors"):
            weights = load_file(path)
            for name in [name for name in weights if name.endswith(ending)]:
                weights[name].view(-1)[weights[name].abs().argmax()] *= -1  # the pattern is kept
            save_file(weights, path, metadata={"format": "pt"})
        return result

    monkeypatch.setattr(cls, method, lossy)


def hashes_of(folder) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its path there."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
