"""Configs of trainings whose model is sparse already, with all weights trained or only an adapter or a head."""

import logging
from pathlib import Path

from torch import nn

from nxm_hf.adapters.masked import is_masked
from nxm_hf.config import NxMConfig
from nxm_hf.layers.modules import has_adapter, without_wrappers
from nxm_hf.storage.model_record import is_frozen, read_record
from nxm_hf.storage.state_file import Header
from nxm_hf.storage.verify import Verification, verify
from nxm_hf.text import shortened

logger = logging.getLogger("nxm_hf")


def frozen_config(model: nn.Module, asked: NxMConfig | None) -> NxMConfig | None:
    """Return a config that keeps the masks of a frozen sparse model, of which only an adapter or a head trains.

    Args:
        model: The model.
        asked: The user's config, or None.

    Returns:
        The config. None if the model is not both sparse and frozen, or if the user's recipe is dense.

    Raises:
        ValueError: If the model does not hold its pattern, or the user's config has another one.
    """
    record = read_record(model)
    if record is None or not is_frozen(model) or (asked is not None and asked.is_dense):
        return None
    found = verify(model)
    if not found.ok and has_adapter(model):
        raise ValueError(_changed_base(model, found))
    found.raise_for_problems()
    held = record.config.pattern
    if asked is not None and asked.pattern != held:
        raise ValueError(
            f"The layers of this model are frozen and hold {held!r}, so training cannot bring them to "
            f"{asked.pattern!r}. Write pattern={held!r}, or prune the model anew: "
            f"nxm_hf.prune(model, {asked.pattern!r})."
        )
    config = record.config.for_finetuning()
    if asked != config:  # so that it is said once
        logger.warning("The base of this model is sparse (%s) and frozen: its masks stay, and the rest trains.", held)
    return config


def _changed_base(model: nn.Module, found: Verification) -> str:
    """Say that a base has lost its zeros. OLoRA, PiSSA and others subtract the initial adapter from it."""
    broken = [layer.name for layer in found.layers if layer.problems]
    configs = getattr(without_wrappers(model), "peft_config", {}).values()
    asked = [init for config in configs if isinstance(init := getattr(config, "init_lora_weights", None), str)]
    cause = f" init_lora_weights={asked[0]!r} changed them; write init_lora_weights=True." if asked else ""
    return (
        f"{len(broken)} layers of the base do not hold their pattern any more: {shortened(broken)}.{cause} Load the "
        "sparse base again before it gets the adapter."
    )


def check_same_adapter(folder: str | Path, header: Header, model: nn.Module) -> None:
    """Raise if an adapter was masked when a checkpoint was written and is not now, or the other way round.

    Args:
        folder: The checkpoint.
        header: The header of its state.
        model: The model.

    Raises:
        ValueError: If only one of the two computes with a masked delta.
    """
    masked = header.get("masked_adapter", False)
    if masked != is_masked(model):
        advice = "Call nxm_hf.mask_adapter(model)" if masked else "Leave mask_adapter out"
        raise ValueError(
            f"The adapter in {folder} {'is' if masked else 'is not'} masked, and that of this model "
            f"{'is not' if masked else 'is'}. {advice} before you make the Trainer."
        )


def config_for(model: nn.Module, asked: NxMConfig | None) -> NxMConfig:
    """Return the config of a training: by default one that keeps the masks of a model which is sparse already.

    Args:
        model: The model.
        asked: The user's config, or None.

    Returns:
        The config.

    Raises:
        ValueError: If none is asked for and the model is dense, or does not hold the pattern of its record.
    """
    if (config := frozen_config(model, asked)) is not None:
        return config
    record = read_record(model)
    if asked is not None:
        if record is not None and not (asked.is_dense and is_frozen(model)):
            logger.warning("This model is sparse already; training restarts from its weights with %r.", asked.recipe)
        return asked
    if record is None:
        raise ValueError('NxMTrainer needs sparsity=, as in sparsity=NxMConfig(pattern="2:4", recipe="admm").')
    verify(model).raise_for_problems()
    config = record.config.for_finetuning()
    logger.warning(
        "This model is sparse already (%s); training keeps its mask. Give sparsity= to prune anew.", config.pattern
    )
    return config
