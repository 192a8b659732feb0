"""Identity: whether a model, and its teacher, are those that a state was written beside."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.plan import Plan, resolve
from nxm_hf.storage.state_file import fingerprint

logger = logging.getLogger("nxm_hf")


def fingerprints(model: nn.Module, plan: Plan) -> dict[str, str]:
    """One fingerprint of the targets as deployed, and one of all other parameters."""
    own = {id(target.layer.weight) for target in plan.targets}
    others = [(name, p) for name, p in model.named_parameters() if id(p) not in own]
    targets = [(target.name, target.layer.weight) for target in plan.targets]
    return {"targets": fingerprint(targets), "others": fingerprint(others)}


@torch.no_grad()
def check_same_model(folder: str | Path, header: dict, model: nn.Module, config: NxMConfig) -> None:
    """Raise unless the Trainer has loaded just the weights that the state was written beside."""
    prints = fingerprints(model, resolve(model, config))
    wrong = [part for part in ("targets", "others") if prints[part] != header[part]]
    if wrong and header["layers"] == resolve(model, config).layers:
        raise ValueError(
            f"The weights in memory are not those that {folder} was saved with: its {' and '.join(wrong)} differ. "
            "Files of two checkpoints may have been mixed, or transformers has not restored this kind of model whole. "
            "Resume from another checkpoint, or load the weights with from_pretrained and train anew."
        )


def check_same_teacher(folder: str | Path, header: dict, teacher: dict[str, Any] | None) -> None:
    """Raise unless the training has the teacher that it had, or none as before; warn where less or more of it counts.

    Teachers are told apart by their weights: a directory may have moved, or hold another model by now.
    """
    nobody = {"source": None, "weights": None, "distillation": None}
    theirs, ours = header.get("teacher") or nobody, teacher or nobody
    if theirs["weights"] != ours["weights"]:
        had, has = (f"the teacher {words['source']}" if words["source"] else "no teacher" for words in (theirs, ours))
        both = ", whose weights differ" if theirs["source"] and ours["source"] else ""
        way = f"Resume with that teacher, teacher={theirs['source']!r}" if theirs["source"] else "Leave teacher= out"
        raise ValueError(
            f"{folder} was trained with {had}, and this training has {has}{both}. {way}, or load the "
            "weights with from_pretrained and train anew."
        )
    if theirs["distillation"] != ours["distillation"]:
        given, made = ours["distillation"], theirs["distillation"]
        logger.warning("Resuming with distillation=%s; the state was made with %s.", given, made)
