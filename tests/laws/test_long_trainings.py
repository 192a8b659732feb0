"""Many steps, and many trainings in one process: memory stays flat, and nothing of a training is left behind."""

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers

from nxm_hf.engine.step_hooks import attached_handlers
from tests.support.models import make_bert
from tests.support.processes import command, environment
from tests.support.processes.long_training import TINY, slope
from tests.support.training import KINDS, InterruptAt, engine_of, eventful, make_trainer

GLOBAL_HOOKS = [
    *(vars(torch_modules)[name] for name in vars(torch_modules) if name.startswith("_global_") and "hooks" in name),
    *(vars(torch_optimizers)[name] for name in vars(torch_optimizers) if name.startswith("_global_optimizer_")),
]


def test_a_slope_is_that_of_the_line():
    assert slope([0, 10, 20], [5, 25, 45]) == pytest.approx(2.0)
    assert slope([0, 10, 20], [7, 7, 7]) == 0.0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
def test_memory_is_flat_over_two_thousand_steps():
    """20,000 steps take minutes: run the program by hand for these."""
    run = subprocess.run(
        command("long_training", 2000, "admm"), check=True, env=environment(), stdout=subprocess.PIPE, text=True
    )
    slopes = json.loads(run.stdout.splitlines()[-1])
    assert max(slopes.values()) <= 1024, f"bytes a step: {slopes}"


def begin_and_leave(number: int, folder: Path) -> list[weakref.ref]:
    """Make a Trainer; train it to the end, in part, or not at all; and return references to its parts."""
    interrupted = [InterruptAt(1)] if number % 10 == 5 else []
    words = dict(max_steps=1 + len(interrupted), gradient_accumulation_steps=1, per_device_train_batch_size=2)
    words |= dict(save_strategy="no", logging_strategy="no")
    recipe = ("asp", "admm", "sr-ste", "rigl")[number % 4]
    trainer = make_trainer(
        folder, eventful(recipe), KINDS[number % 2], model=make_bert(**TINY), callbacks=interrupted, **words
    )
    left = [weakref.ref(trainer), weakref.ref(trainer.model)]
    if number % 10 != 9:
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train()
        left += [weakref.ref(engine_of(trainer)), weakref.ref(trainer.optimizer)]
        left += [weakref.ref(parameter) for parameter in trainer.model.parameters()]
    return left


@pytest.mark.slow
def test_two_hundred_trainings_leave_no_hook_and_no_model(tmp_path):
    before, handlers = [len(hooks) for hooks in GLOBAL_HOOKS], len(attached_handlers())
    left = [reference for number in range(200) for reference in begin_and_leave(number, tmp_path)]
    gc.collect()
    alive = [reference() for reference in left if reference() is not None]
    assert len(left) > 2000 and not alive, f"{len(alive)} are left, such as {type(alive[0])}"
    assert [len(hooks) for hooks in GLOBAL_HOOKS] == before and len(GLOBAL_HOOKS) >= 6
    assert len(attached_handlers()) == handlers
    assert torch.is_grad_enabled() and sys.gettrace() is None
