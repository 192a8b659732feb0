"""Trainings that are not supported: each is refused in one sentence when the Trainer is made."""

import os

from accelerate.state import AcceleratorState
from torch import nn
from transformers import TrainingArguments

from nxm_hf.engine.optimizer_state import UNSUPPORTED_OPTIMIZERS

_BACKENDS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")


def refuse_unsupported(args: TrainingArguments, model: nn.Module) -> None:
    """Raise for a training whose weights or steps cannot be seen in one piece.

    Args:
        args: The arguments of the Trainer.
        model: The model.

    Raises:
        ValueError: If the optimizer, the distribution or the quantization is not supported.
    """
    optimizer = str(getattr(args.optim, "value", args.optim))
    if any(word in optimizer for word in UNSUPPORTED_OPTIMIZERS):
        raise ValueError(f"optim={optimizer!r} does not update weights once per step, in place; use adamw_torch.")
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise ValueError("DeepSpeed is not supported, as it replaces optimizer.step(); use DDP (torchrun) instead.")
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        raise ValueError("FSDP is not supported, because masks need whole weights; use DDP (torchrun) instead.")
    backend = str(AcceleratorState().distributed_type.value) if AcceleratorState._shared_state else "NO"
    if backend in _BACKENDS:
        raise ValueError(f"Training on {backend} is not supported; use DDP (torchrun) instead.")
    device_map: dict[str, object] = getattr(model, "hf_device_map", None) or {"": 0}
    if len(set(device_map.values())) > 1:
        raise ValueError("This model is spread over devices (device_map); load it on one device and use DDP instead.")
    if getattr(model, "_device_mesh", None) is not None:
        raise ValueError("This model was sharded when loaded (tp_plan); load it on one device and use DDP instead.")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("This model is quantized; load it in fp32, make it sparse, and quantize it afterwards.")
