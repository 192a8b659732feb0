"""The program of each process of a distributed test: it runs trainings in turn, and writes facts for pytest to judge.

Run by `torchrun` or `accelerate launch` as `-m ... CHECKS FOLDER`, with CHECKS of the names in this file,
joined by commas; process r leaves `FOLDER/rank-r.json`.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed import destroy_process_group
from torch.utils.data import DataLoader
from transformers import TrainerCallback

import nxm_hf
from nxm_hf import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.pruning import during_training
from nxm_hf.storage.checkpoints import missing_parts
from nxm_hf.storage.state_file import fingerprint
from tests.support.grids import FEW, SPARSE
from tests.support.models import make_bert, make_rows, spare_imports
from tests.support.training import engine_of, make_12_step_trainer, without_times

# What alps makes of few rows hangs on the last bits of them and of the weights: 1e-8 becomes 5e-5, or another mask.
# Two processes sum in another order than one, so the laws have `admm` go by gradients; "halfway" is of alps.
STEADY = NxMConfig("admm", settings={"scores": "fisher"})
MIDDLE, END = 4, 8
ADAM = dict(max_steps=END, save_steps=MIDDLE, per_device_train_batch_size=4)
LAUNCHED = "sr-ste"  # the recipe that is trained under another launcher too
SGD = dict(optim="sgd", learning_rate=0.1, max_grad_norm=0, gradient_accumulation_steps=2)
BEST = dict(
    max_steps=6, save_steps=2, logging_steps=1, eval_steps=2, eval_strategy="steps", load_best_model_at_end=True
)
BEST.update(greater_is_better=True)  # of the loss, so that the best is not the last


class Watch(TrainerCallback):
    """Records fingerprints of model and engine after every step, and whether a model is sparse when it is evaluated."""

    def __init__(self):
        self.trainer, self.is_dense, self.steps, self.evaluated = None, False, [], []

    def on_step_end(self, args, state, control, model, **kwargs):
        state_dict = {} if self.is_dense else engine_of(self.trainer).state_dict()
        state_dict.pop("header", None)
        self.steps.append([fingerprint(model.named_parameters()), fingerprint(state_dict.items())])

    def on_prediction_step(self, args, state, control, model, **kwargs):
        self.evaluated.append(nxm_hf.verify(model, "2:4").ok)


class Derail(TrainerCallback):
    """Turns a gradient around in one process only, as if its processes did not communicate."""

    def __init__(self, name: str):
        self.name = name

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if args.process_index == 1:
            model.get_parameter(self.name).grad.neg_()


def make_trainer(recipe, folder: Path, *callbacks, kind="NxMTrainer", dropout=0.0, resume=None, **changes):
    """Return a trainer of a tiny BERT, of any kind, and the `Watch` in it."""
    model = make_bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    watch = Watch()
    callbacks, changes = [*callbacks, watch], {"eval_dataset": make_rows(16), **ADAM, **changes}
    watch.trainer = make_12_step_trainer(
        folder, recipe, kind, callbacks=callbacks, resume_from=resume, model=model, **changes
    )
    watch.is_dense = kind == "Trainer" or recipe == "dense"
    return watch.trainer, watch


def train(recipe: str | NxMConfig | None, folder: Path, *callbacks, resume=None, **changes) -> dict:
    """Train, and return what is compared."""
    recipe = STEADY if recipe == "admm" else recipe
    trainer, watch = make_trainer(recipe, folder, *callbacks, resume=resume, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return {
        "steps": watch.steps,
        "weights": fingerprint(trainer.model.named_parameters()),
        "ok": nxm_hf.verify(trainer.model, "2:4").ok,
        "evaluated": watch.evaluated,
        "best": trainer.state.best_model_checkpoint,
        "records": without_times(trainer.state.log_history[:-1]),
    }


def adam(folder: Path, recipe: str) -> dict:
    """Train with a folder for each process, so that the files of each can be told apart."""
    return train(recipe, folder / f"rank-{PartialState().process_index}")


def launched(folder: Path) -> dict:
    """Train one recipe of `adam` under another launcher."""
    return adam(folder, LAUNCHED)


def sgd(folder: Path, recipe: str) -> dict:
    """Train with accumulation and without Adam and clipping, which would hide the scale of a gradient."""
    return train(recipe, folder, **SGD)


def best(folder: Path, recipe: str) -> dict:
    """Train with dropout, and end with the weights of the best checkpoint."""
    return train(recipe, folder, dropout=0.1, **BEST)


def resumed(folder: Path, recipe: str) -> dict:
    """Resume `best` in the middle."""
    middle = folder.parents[1] / "best" / recipe / "checkpoint-2"
    return train(recipe, folder, dropout=0.1, resume=str(middle), **BEST)


def fewer(folder: Path, recipe: str) -> dict:
    """Resume what one process began."""
    middle = folder.parents[1] / "one" / "adam" / recipe / f"checkpoint-{MIDDLE}"
    return train(recipe, folder, resume=str(middle))


def callback(folder: Path, recipe: str) -> dict:
    """Train with NxMCallback, and with the NxMTrainer that must equal it if it leaves the loss scale alone."""
    short = dict(max_steps=4, save_steps=2, dropout=0.1)
    whole = train(recipe, folder / "callback", kind="NxMCallback", **short)
    middle = str(folder / "callback" / "checkpoint-2")
    again = train(recipe, folder / "again", kind="NxMCallback", resume=middle, **short)
    ours = train(recipe, folder / "trainer", fix_loss_scale=False, **short)
    return {"trainer": ours, "callback": whole, "resumed": again}


def derailed(folder: Path, recipe: str, name: str = "bert.encoder.layer.0.output.dense.weight") -> dict:
    """Train other weights in one process than in the rest, and return the error."""
    try:
        train(recipe, folder, Derail(name), max_steps=2, save_steps=2)
        message = "nothing"
    except RuntimeError as error:
        message = str(error)
    PartialState().wait_for_everyone()
    return {"error": message, "missing": missing_parts(folder / "checkpoint-2")}


def head(folder: Path) -> dict:
    """Do the same with weights that are not pruned."""
    return derailed(folder, "ste", "classifier.weight")


def plain(folder: Path) -> dict:
    """Train with the recipe "dense", and with the plain Trainer that must equal it."""
    words = dict(dropout=0.1, gradient_accumulation_steps=2, max_steps=6, eval_strategy="steps", eval_steps=3)
    return {
        "nxm": train("dense", folder / "nxm", **words),
        "trainer": train(None, folder / "trainer", kind="Trainer", **words),
    }


def untrained(folder: Path) -> dict:
    """Evaluate a model before any training."""
    trainer, _ = make_trainer("ste", folder)
    return {"loss": trainer.evaluate()["eval_loss"]}


def beginning(folder: Path) -> dict:
    """Prune before training, with other rows in each process."""
    model, rows = make_bert(), make_rows()[PartialState().process_index * 16 :]
    config = NxMConfig("asp", settings={"scores": "wanda"})
    during_training.CalibratedPruner.of(Plan.of(model, config), config, DataLoader(rows, 8)).prune()
    return {"weights": fingerprint(model.named_parameters()), "ok": nxm_hf.verify(model).ok}


def warmed(folder: Path) -> dict:
    """Train dense at first, then prune with training rows, and go on."""
    config = NxMConfig("asp", settings={"scores": "sparsegpt"}, warmup=0.5)
    return train(config, folder, dropout=0.1, max_steps=6, logging_steps=2)


def halfway(folder: Path) -> dict:
    """Train with a recipe that prunes with training rows when the frozen-mask phase starts."""
    return train(NxMConfig("admm"), folder, dropout=0.1, max_steps=6, logging_steps=2)


def spared(folder: Path) -> dict:
    """Train with `admm` twice: where pruning with rows fails in one process, and where it is not asked for."""

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    intact = during_training.prune
    if PartialState().process_index == 1:
        during_training.prune = broken
    try:
        facts = {"auto": train(NxMConfig("admm"), folder / "auto", max_steps=4)}
    finally:
        during_training.prune = intact
    return {**facts, "fisher": train(STEADY, folder / "fisher", max_steps=4)}


def machines(folder: Path) -> dict:
    """Save in every process, as if each were on a machine with a disk of its own."""
    own = folder / f"rank-{PartialState().process_index}"
    local, os.environ["LOCAL_RANK"] = os.environ["LOCAL_RANK"], "0"  # what a launcher says on each of two machines
    try:
        train("ste", own, max_steps=2, save_steps=2, save_on_each_node=True)
        message = "nothing"
    except RuntimeError as error:
        message = str(error)
    finally:
        os.environ["LOCAL_RANK"] = local
    return {"error": message, "missing": missing_parts(own / "checkpoint-2")}


# Every recipe is trained in two processes. All that follows hangs on the kind of state, so four recipes stand for all.
BY_RECIPE: dict[str, Callable] = {f.__name__: f for f in (adam,)}
BY_FEW: dict[str, Callable] = {f.__name__: f for f in (sgd, best, resumed, fewer, callback, derailed)}
ONCE: dict[str, Callable] = {
    f.__name__: f for f in (launched, head, plain, untrained, beginning, warmed, halfway, spared, machines)
}
CHECKS = {**BY_RECIPE, **BY_FEW, **ONCE}


def keys(check: str) -> list[tuple[str, ...]]:
    """Return the keys of the facts of a check: one for each recipe that it is done with, or one."""
    return [(check,)] if check in ONCE else [(check, recipe) for recipe in (FEW if check in BY_FEW else SPARSE)]


def main(checks: str, folder: str) -> None:
    """Do the checks up to the first error, after which the processes would wait for each other."""
    torch.set_num_threads(1)
    spare_imports()
    state, root, facts = PartialState(cpu=True, timeout=timedelta(seconds=120)), Path(folder), {}
    try:
        for check in checks.split(","):
            for key in keys(check):
                facts["/".join(key)] = CHECKS[check](root.joinpath(*key), *key[1:])
    except Exception:
        facts["error"] = traceback.format_exc()
    root.joinpath(f"rank-{state.process_index}.json").write_text(json.dumps(facts))
    destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # at a normal exit, gloo's threads sometimes abort a process that has done all its work


if __name__ == "__main__":
    main(*sys.argv[1:])
