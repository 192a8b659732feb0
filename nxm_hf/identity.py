"""Identity: whether a model holds the weights that a state was written beside."""

from pathlib import Path

import torch
from torch import nn

from nxm_hf.config import NxMConfig
from nxm_hf.state import fingerprint
from nxm_hf.targets import Plan, resolve


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
