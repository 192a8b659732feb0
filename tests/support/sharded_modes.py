"""Ways to run FSDP2 that change no number of a training, and one that changes numbers in all processes alike."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

import nxm_hf
from nxm_hf import NxMConfig
from nxm_hf.layers.modules import find_blocks
from nxm_hf.storage.state_file import fingerprint
from tests.support.models import make_batches, make_model
from tests.support.sharded_loops import config_of, loop

# The first is what the others are compared with; of the two in bf16, the first has one shard and two replicas.
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "resharded": {"reshard_after_forward": True},
    "kept": {"reshard_after_forward": False},
    "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    "checkpointed": {},
    "compiled": {},
    "bf16-one": {"mp_policy": MixedPrecisionPolicy(torch.bfloat16)},
    "bf16": {"mp_policy": MixedPrecisionPolicy(torch.bfloat16)},
}


def prepared(mode: str) -> nn.Module:
    """Return a model with what a mode does to it before it is sharded."""
    model = make_model("llama")
    blocks = [block for _, block in find_blocks(model)]
    if mode == "checkpointed":
        apply_activation_checkpointing(model, check_fn=lambda module: module in blocks)
    if mode == "compiled":
        for block in blocks:
            block.compile(backend="eager")
    return model


def modes(folder: Path, mode: str) -> dict:
    """Train in a mode, and prune in it."""
    policies, facts = dict(MODES[mode]), {}
    if mode == "bf16-one":
        policies["mesh"] = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    for recipe in ("sr-ste", "admm"):
        model, engine, counts = loop(prepared(mode), config_of(recipe), True, **policies)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        facts[recipe] = {"state": fingerprint(engine.state_dict().items()), "counts": sum(counts)}
        facts[recipe]["types"] = [str(dtype) for dtype in {parameter.dtype for parameter in model.parameters()}]
        engine.finish()
        facts[recipe]["weights"], facts[recipe]["ok"] = weights_of(model), nxm_hf.verify(model, "2:4").ok
    model, _, _ = loop(prepared(mode), NxMConfig("dense"), True, steps=2, **policies)
    nxm_hf.prune(model, "2:4", "alps", make_batches("llama", 3))
    facts["pruned"] = {"weights": weights_of(model), "ok": nxm_hf.verify(model, "2:4").ok}
    return facts


def weights_of(model: nn.Module) -> str:
    """Return the fingerprint of this process's parts."""
    return fingerprint((name.replace("_checkpoint_wrapped_module.", ""), p) for name, p in model.named_parameters())
