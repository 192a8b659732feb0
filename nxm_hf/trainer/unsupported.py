"""What is not supported, refused when the Trainer is made and in one sentence each."""

import os
from typing import Any

from accelerate.state import AcceleratorState
from torch import nn

_OPTIMIZERS = ("schedule_free", "lomo", "layerwise", "lbfgs")
_BACKENDS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")


def refuse_unsupported(args: Any, model: nn.Module) -> None:
    """Raise for a training whose weights or steps nxm_hf cannot see whole."""
    optimizer = str(getattr(args.optim, "value", args.optim))
    if any(word in optimizer for word in _OPTIMIZERS):
        raise ValueError(f"optim={optimizer!r} does not update weights once per step, in place; use adamw_torch.")
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise ValueError("DeepSpeed steps the optimizer out of our sight; train with DDP (torchrun) instead.")
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        raise ValueError("FSDP shards the weights that masks are made of; train with DDP (torchrun) instead.")
    backend = str(AcceleratorState().distributed_type.value) if AcceleratorState._shared_state else "NO"
    if backend in _BACKENDS:
        raise ValueError(f"Training on {backend} is not supported; train with DDP (torchrun) instead.")
    devices = set((getattr(model, "hf_device_map", None) or {"": 0}).values())
    if len(devices) > 1:
        raise ValueError("This model is spread over devices (device_map); load it whole and train with DDP instead.")
    if getattr(model, "_device_mesh", None) is not None:
        raise ValueError("This model was sharded when loaded (tp_plan); load it whole and train with DDP instead.")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("This model is quantized; load it in fp32, make it sparse, and quantize it afterwards.")
