"""The program of the tests of FSDP2: it forks groups of processes, which train in turn, and writes their facts.

Run as `-m ... FOLDER`. Process r of a group of n leaves `FOLDER/facts-n-r.json`. The groups are forked after the imports,
which take longer than the trainings.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import DistributedType
from accelerate.utils import set_seed
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from transformers import TrainerCallback

import nxm_hf
from nxm_hf import NxMConfig, NxMTrainer, attach
from nxm_hf.storage.state_file import fingerprint
from tests.support.models import make_arguments, make_bert, make_rows
from tests.support.training import NO_DROPOUT, eventful, without_times

# Recipes whose verbs treat entries, or groups of a row, apart from all others.
BY_GROUP = [
    "asp", "ste", "sr-ste", "fix", "reset", "regularize", "mask-decay", "structure-decay", "admm", "gradual", "acdc",
]  # fmt: skip
FEW = ["asp", "sr-ste", "admm"]
LIMIT = timedelta(seconds=60)
LAYERS = {"transformer_layer_cls_to_wrap": ["BertLayer"]}  # by default accelerate 1.15 shards BERT's embeddings twice


def config_of(recipe: str) -> NxMConfig:
    """Return a recipe with events at every second step. A measured rho hangs on the order of a sum, so admm has one."""
    config = eventful(recipe)
    return config.replace(rho=0.01, scores="fisher") if recipe == "admm" else config


class Watch(TrainerCallback):
    """Records fingerprints of the whole model and the engine's whole state after every step."""

    def __init__(self):
        self.trainer, self.steps, self.evaluated, self.sharded = None, [], [], []

    def on_step_end(self, args, state, control, model, **kwargs):
        tensors = self.trainer.engine.tensors()
        self.steps.append([fingerprint(model.named_parameters()), fingerprint(tensors.items())])
        self.sharded.append(all(isinstance(p, DTensor) for p in model.parameters()))

    def on_prediction_step(self, args, state, control, model, **kwargs):
        self.evaluated.append(nxm_hf.verify(model, "2:4").ok)


def train(folder: Path, config, fsdp: dict | None, model=None, resume=None, callbacks=(), **changes) -> dict:
    """Train with DDP, or with FSDP2 if it is given settings, and return what is compared."""
    words = dict(max_steps=12, save_steps=6, per_device_train_batch_size=4, max_grad_norm=0, logging_steps=2, **changes)
    words |= {} if fsdp is None else {"fsdp": True, "fsdp_config": fsdp}
    args = make_arguments(folder, **words)
    if fsdp is not None:  # accelerate shards over GPUs only, unless it takes these processes for some
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    watch = Watch()
    model = make_bert(**NO_DROPOUT) if model is None else model
    set_seed(1)
    rows = make_rows(32)
    trainer = NxMTrainer(
        model, args, train_dataset=rows, eval_dataset=rows[:16], sparsity=config, callbacks=[*callbacks, watch]
    )
    watch.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder / "final"))
    return {
        "steps": watch.steps,
        "sharded": watch.sharded,
        "evaluated": watch.evaluated,
        "weights": fingerprint(trainer.model.named_parameters()),
        "ok": nxm_hf.verify(trainer.model, "2:4").ok,
        "best": trainer.state.best_model_checkpoint,
        "records": without_times(trainer.state.log_history[:-1]),
    }


def equal(folder: Path, recipe: str) -> dict:
    """Train a recipe with DDP and with FSDP2."""
    return {
        "ddp": train(folder / "ddp", config_of(recipe), None),
        "fsdp": train(folder / "fsdp", config_of(recipe), LAYERS),
    }


GROUPS: dict[int, dict[Callable, list[tuple[str, ...]]]] = {2: {equal: [(recipe,) for recipe in BY_GROUP]}}


def work(rank: int, processes: int, root: Path) -> None:
    """Do the checks of a group in one of its processes, up to the first error."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", ACCELERATE_USE_CPU="true")  # the group is made below
    store = dist.FileStore(str(root / f"store-{processes}"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=LIMIT)
    facts = {}
    try:
        for check, cases in GROUPS[processes].items():
            for case in cases:
                facts["/".join((check.__name__, *case))] = check(root.joinpath(check.__name__, *case), *case)
    except Exception:
        facts["error"] = traceback.format_exc()
    (root / f"facts-{processes}-{rank}.json").write_text(json.dumps(facts))
    sys.stdout.flush()
    os._exit("error" in facts)  # at a normal exit, gloo's threads sometimes abort a process that has done all its work


def main(folder: str) -> None:
    """Fork the groups of processes, one group after the other."""
    for processes in GROUPS:
        children = []
        for rank in range(processes):
            if not (child := os.fork()):
                work(rank, processes, Path(folder))
            children.append(child)
        if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
            sys.exit(f"a process of {processes} failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
