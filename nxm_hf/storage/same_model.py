"""Fingerprints of a model and its teacher: check that a state was written beside them."""

import logging
from pathlib import Path
from typing import Any

import torch

from nxm_hf.layers.plan import Plan
from nxm_hf.storage.state_file import Header, fingerprint

logger = logging.getLogger("nxm_hf")


def fingerprints(plan: Plan) -> dict[str, str]:
    """Fingerprint the weights of a deployed model.

    Args:
        plan: The pruned layers and their model.

    Returns:
        One fingerprint of the pruned weights ("targets") and one of all other parameters ("others"). Of a sharded
        model they are those of its whole weights, and every process calls this.
    """
    pruned = {id(target.layer.weight) for target in plan.targets}
    others = [(name, p) for name, p in plan.whole.named_parameters() if id(p) not in pruned]
    targets = [(target.name, target.layer.weight) for target in plan.targets]
    return {"targets": fingerprint(targets), "others": fingerprint(others)}


@torch.no_grad()
def check_same_model(folder: str | Path, header: Header, plan: Plan) -> None:
    """Raise unless the weights in memory are those that a state was written beside.

    Args:
        folder: The checkpoint, for the error.
        header: The header of its state.
        plan: The pruned layers and their model.

    Raises:
        ValueError: If any weight differs.
    """
    prints = fingerprints(plan)
    different = [part for part in ("targets", "others") if prints[part] != header[part]]
    if different and header["layers"] == plan.layers:
        raise ValueError(
            f"The weights in memory are not those that {folder} was saved with: its {' and '.join(different)} differ. "
            "Files of two checkpoints may have been mixed, or transformers has not restored this kind of model whole. "
            "Resume from another checkpoint, or load the weights with from_pretrained and train anew."
        )


def check_same_teacher(folder: str | Path, header: Header, teacher: dict[str, Any] | None) -> None:
    """Raise unless a training has the same teacher as the checkpoint, or none as before.

    Teachers are compared by their weights, because a directory may have moved or changed. A different distillation
    config is allowed, with a warning.

    Args:
        folder: The checkpoint, for the error.
        header: The header of its state.
        teacher: Description of this training's teacher, or None.

    Raises:
        ValueError: If the teachers differ.
    """
    no_teacher = {"source": None, "weights": None, "distillation": None}
    saved, current = header.get("teacher") or no_teacher, teacher or no_teacher
    if saved["weights"] != current["weights"]:
        had, has = (f"the teacher {t['source']}" if t["source"] else "no teacher" for t in (saved, current))
        both = ", whose weights differ" if saved["source"] and current["source"] else ""
        advice = f"Resume with that teacher, teacher={saved['source']!r}" if saved["source"] else "Leave teacher= out"
        raise ValueError(
            f"{folder} was trained with {had}, and this training has {has}{both}. {advice}, or load the "
            "weights with from_pretrained and train anew."
        )
    if saved["distillation"] != current["distillation"]:
        logger.warning(
            "Resuming with distillation=%s; the state was made with %s.", current["distillation"], saved["distillation"]
        )
