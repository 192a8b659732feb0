"""Trainings that are not supported: each is refused in one sentence when the Trainer is made."""

import logging
import os
from typing import Any

import transformers
from accelerate.state import AcceleratorState
from torch import nn
from transformers import TrainingArguments

from nxm_hf.config.versions import forgets_best
from nxm_hf.engine.optimizer_state import UNSUPPORTED_OPTIMIZERS
from nxm_hf.layers.modules import has_adapter
from nxm_hf.layers.plan import Plan
from nxm_hf.text import shortened

logger = logging.getLogger("nxm_hf")
_BACKENDS = ("DEEPSPEED", "MEGATRON_LM", "XLA")


def refuse_unsupported(args: TrainingArguments, model: nn.Module) -> None:
    """Raise for a training whose weights or steps cannot be seen in one piece.

    Args:
        args: The arguments of the Trainer.
        model: The model.

    Raises:
        ValueError: If the optimizer, the distribution, the quantization or the version is not supported.
    """
    if args.load_best_model_at_end and str(getattr(args.save_strategy, "value", args.save_strategy)) == "best":
        _refuse_forgotten_best()
    optimizer = str(getattr(args.optim, "value", args.optim))
    if any(word in optimizer for word in UNSUPPORTED_OPTIMIZERS):
        raise ValueError(f"optim={optimizer!r} does not update weights once per step, in place; use adamw_torch.")
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise ValueError(
            "DeepSpeed is not supported, as it replaces optimizer.step(); use FSDP2, fsdp=True, whose "
            "reshard_after_forward does what ZeRO-3 does, or DDP (torchrun)."
        )
    if is_fsdp():
        _refuse_unsupported_fsdp(AcceleratorState().fsdp_plugin)
    if (backend := _backend()) in _BACKENDS:
        raise ValueError(f"Training on {backend} is not supported; use DDP (torchrun) instead.")
    device_map: dict[str, object] = getattr(model, "hf_device_map", None) or {"": 0}
    if len(set(device_map.values())) > 1:
        raise ValueError(
            "This model is spread over devices; load it without device_map=, and use DDP or FSDP2 (fsdp=True) instead."
        )
    if getattr(model, "_device_mesh", None) is not None:
        raise ValueError(
            "This model was sharded when loaded (tp_plan or distributed_config); load it on one device, and use FSDP2 "
            "(fsdp=True) or DDP instead."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(_quantized(model))


def _refuse_forgotten_best() -> None:
    """Raise if this version of transformers would end with the last weights, and not with the best."""
    if forgets_best():
        raise ValueError(
            f'transformers {transformers.__version__} does not load the best model with save_strategy="best"; write '
            'save_strategy="steps" with save_steps equal to eval_steps, or: pip install "transformers>=5.4".'
        )


def is_fsdp() -> bool:
    """Return True if accelerate shards the weights of this training with FSDP."""
    return _backend() == "FSDP"


def warn_of_unsharded(args: TrainingArguments) -> None:
    """Warn if FSDP was asked for, and accelerate trains without it.

    Args:
        args: The arguments of the Trainer.
    """
    if (args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true") and not is_fsdp():
        logger.warning(
            "FSDP was asked for, and accelerate trains without it here (%s): every process holds the whole model. "
            "accelerate shards over several GPUs only.",
            _backend(),
        )


def _backend() -> str:
    """Return accelerate's name of how this training is distributed."""
    return str(AcceleratorState().distributed_type.value) if AcceleratorState._shared_state else "NO"


def _refuse_unsupported_fsdp(plugin: Any) -> None:
    """Raise unless weights are sharded by rows, from a model that every process holds."""
    if plugin.fsdp_version != 2:
        raise ValueError(
            'FSDP1 puts weights into flat parameters that cut N:M groups; use FSDP2, fsdp_config={"version": 2} or '
            "fsdp_version: 2, to which `accelerate to-fsdp2` turns a config file."
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "cpu_ram_efficient_loading leaves weights empty in all processes but one; write "
            'fsdp_config={"cpu_ram_efficient_loading": False}, or fsdp_cpu_ram_efficient_loading: false.'
        )


def refuse_unsaved(plan: Plan) -> None:
    """Raise if sparse layers would train under an adapter: PEFT saves the adapter alone, so they would be lost.

    Args:
        plan: The sparse layers and their model.

    Raises:
        ValueError: If a layer of the base trains, or a copy of it does.
    """
    if not has_adapter(plan.whole):
        return
    if trained := [target.name for target in plan.trained]:
        raise ValueError(
            f"{len(trained)} layers of the base model train beside an adapter, and PEFT would save the adapter alone. "
            "Freeze the base model with requires_grad_(False) before it gets the adapter, or train it without one. "
            f"They are: {shortened(trained)}."
        )
    copied = {
        id(module)
        for wrapper in plan.model.modules()
        if isinstance(original := getattr(wrapper, "original_module", None), nn.Module)
        for module in original.modules()
    }
    if copies := [target.name for target in plan.targets if id(target.layer.module) in copied]:
        raise ValueError(
            f"modules_to_save names {len(copies)} sparse layers, and PEFT would train dense copies of them. "
            f"Leave them to the adapter, with target_modules. They are: {shortened(copies)}."
        )


def _quantized(model: nn.Module) -> str:
    if has_adapter(model):
        return (
            "The base of this adapter is quantized, and a quantized weight has no entries that a mask could keep. Load "
            "the base without quantization_config, in dtype=torch.bfloat16 if memory is short, and quantize the model "
            "after nxm_hf.merge_adapter(model)."
        )
    return "This model is quantized; load it in fp32, make it sparse, and quantize it afterwards."
