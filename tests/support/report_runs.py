"""Small trainings whose reports are tested."""

import json

from transformers import Trainer

from nxm_hf import AnalysisCallback, NxMConfig, NxMTrainer
from nxm_hf.analysis.recording import ANALYSIS_FILE
from tests.support.models import make_arguments, make_bert, make_rows

RECIPES = {"admm": dict(settings={"steps": 3, "rho": 0.01}), "sr-ste": {}, "rigl": dict(settings={"every": 2})}


def make_run_trainer(folder, recipe="sr-ste", callbacks=(AnalysisCallback,), trainer_class=NxMTrainer, **changes):
    """Return a trainer of 12 steps that logs every 2nd and evaluates every 4th; `callbacks` may hold classes."""
    sparsity = {} if trainer_class is Trainer else {"sparsity": NxMConfig(recipe, "2:4", **RECIPES.get(recipe, {}))}
    rows, callbacks = make_rows(), [made() if isinstance(made, type) else made for made in callbacks]
    args = make_arguments(folder, **{"eval_strategy": "steps", "eval_steps": 4, "logging_steps": 2, **changes})
    data = dict(train_dataset=rows, eval_dataset=rows[:16])
    return trainer_class(model=make_bert(), args=args, callbacks=callbacks, **data, **sparsity)


def train_run(folder, recipe="sr-ste", **changes):
    """Train, save the model, and return the output directory."""
    trainer = make_run_trainer(folder, recipe, **changes)
    trainer.train()
    trainer.save_model()
    return folder


def read_analysis(folder):
    """Return what AnalysisCallback wrote."""
    return json.loads((folder / ANALYSIS_FILE).read_text())


def read_log(folder):
    """Return the log of a training of 12 steps."""
    return json.loads((folder / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
