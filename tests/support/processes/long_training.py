"""A long training of a tiny model in a process of its own, which watches its memory.

long_training STEPS RECIPE...    prints for each recipe by how many bytes a step the process grows, as the slope of a
                                 line through its resident size; `python -m tests.support.processes.long_training
                                 20000 admm` takes some minutes
"""

import gc
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from transformers import TrainerCallback

from tests.support.models import make_bert, spare_imports
from tests.support.training import eventful, make_trainer

TINY = dict(hidden_size=16, num_hidden_layers=1, intermediate_size=32, num_attention_heads=1)
# Shares of the training: allocators have grown by the first. Settling lies between, which may prune with calibration
# data: that takes some MiB once.
SPANS = ((0.4, 0.7), (0.8, 1.0))
LOOKS = 60  # at the resident size


class WatchMemory(TrainerCallback):
    """Notes the resident size of the process at equal distances, after garbage was collected."""

    def __init__(self, every: int):
        self.every, self.steps, self.sizes = every, [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            gc.collect()
            self.steps.append(state.global_step)
            self.sizes.append(resident())


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(steps: list[int], sizes: list[int]) -> float:
    """Return the slope of the line that fits best."""
    x, y = torch.tensor([steps, sizes], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


def bytes_a_step(recipe: str, steps: int) -> float:
    """Train with events at every second step, and return the larger slope, before settling or after it."""
    watch = WatchMemory(steps // LOOKS)
    words = dict(max_steps=steps, gradient_accumulation_steps=1, per_device_train_batch_size=2)
    words |= dict(save_strategy="no", logging_steps=steps // 4)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, eventful(recipe), model=make_bert(**TINY), callbacks=[watch], **words)
        trainer.train()
    looks = [(int(begin * LOOKS), int(end * LOOKS)) for begin, end in SPANS]
    return max(slope(watch.steps[begin:end], watch.sizes[begin:end]) for begin, end in looks)


def main(steps: str, *recipes: str) -> None:
    torch.set_num_threads(1)
    spare_imports()
    print(json.dumps({recipe: bytes_a_step(recipe, int(steps)) for recipe in recipes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
