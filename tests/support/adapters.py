"""Tiny sparse models with an adapter of PEFT on them. Tests that need PEFT are skipped without it."""

import pytest
import torch
from torch import nn

import nxm_hf
from tests.support.models import make_bert

peft = pytest.importorskip("peft", reason="needs PEFT")
CONFIG = dict(r=4, lora_alpha=8, target_modules=["query", "value", "dense"], modules_to_save=["classifier"])


def make_base(seed: int = 0, **changes) -> nn.Module:
    """Return a BERT that is 2:4."""
    model = make_bert(seed, **changes)
    nxm_hf.prune(model, "2:4")
    return model


def make_adapted(seed: int = 0, base: nn.Module | None = None, masked: bool = False, filled: bool = False, **changes):
    """Return a LoRA on a sparse BERT.

    Args:
        seed: The seed of the adapter's weights.
        base: The base, instead of `make_base()`.
        masked: Mask the adapter.
        filled: Give B random values, as after a training; PEFT begins with zeros.
        changes: Arguments of LoraConfig.
    """
    base = make_base() if base is None else base
    torch.manual_seed(seed)
    model = peft.get_peft_model(base, peft.LoraConfig(**{**CONFIG, **changes}))
    if filled:
        fill(model)
    return nxm_hf.mask_adapter(model) if masked else model


def fill(model: nn.Module) -> None:
    """Give the second matrix of each LoRA layer random values."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)


def adapter_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy what PEFT would save of an adapter."""
    return {name: tensor.clone() for name, tensor in peft.get_peft_model_state_dict(model).items()}
