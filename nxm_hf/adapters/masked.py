"""Masked adapters: a LoRA whose delta is restricted to the masks of its sparse base."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nxm_hf.layers.experts import expert_stacks
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.modules import has_adapter, unwrap
from nxm_hf.patterns import parse
from nxm_hf.storage.adapter_files import MASKED
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.verify import verify

_MASK = "nxm_mask"  # the buffer of a LoRA layer that holds the mask, in the form of the weight; it is not saved


def mask_adapter(model: nn.Module) -> nn.Module:
    """Restrict the LoRA of a model to the masks of its sparse base, in place.

    Each LoRA layer on a sparse layer then adds M * (B A) to the weight, where M is the layer's mask. The sum holds the
    pattern, so that merging is exact. Call it before the training. LoRA layers on dense layers stay as they are.

    The product B A is computed in every forward pass, and multiplied with the input. A masked layer so costs about two
    of the base, and its mask takes one byte for each weight.

    Args:
        model: A PeftModel whose base is sparse. It may have several LoRA adapters, and each is masked.

    Returns:
        The same model.

    Raises:
        ValueError: If the base is not sparse, or an adapter is not a plain LoRA on sparse layers.

    Example:
        >>> model = get_peft_model(sparse, LoraConfig(target_modules="all-linear"))  # doctest: +SKIP
        >>> NxMTrainer(model=mask_adapter(model), args=args, train_dataset=rows).train()  # doctest: +SKIP
    """
    if not has_adapter(model):
        raise ValueError(
            f"This {type(model).__name__} has no adapter. Write mask_adapter(get_peft_model(model, LoraConfig(...)))."
        )
    record = read_record(model)
    if record is None:
        raise ValueError(
            "The base of this adapter has no record of being sparse, so there is no mask. Prune it before it gets the "
            'adapter: nxm_hf.prune(model, "2:4").'
        )
    verify(model).raise_for_problems()
    layers = {id(layer.module): layer for layer in find_layers(model) if layer.name in record.layers}
    found = [(module, layers[id(base)]) for module, base in adapter_layers(model) if id(base) in layers]
    if not found:
        raise ValueError(
            f"No adapter layer stands on one of the {len(layers)} sparse layers, so there is nothing to mask. Name "
            f"some of them in target_modules, such as {next(iter(record.layers))}."
        )
    for module, layer in found:
        _check_plain_lora(module, layer.name)
    for module, layer in found:
        pattern = parse(record.layers[layer.name])
        mask = layer.matrix(pattern.mask(layer.matrix(layer.weight.detach()).abs())).contiguous()
        module.register_buffer(_MASK, mask, persistent=False)
        module.lora_variant.update(dict.fromkeys(module.lora_A, MaskedLora()))
    for config in cast(Any, unwrap(model)).peft_config.values():
        config.init_lora_weights = MASKED
    return model


def adapter_layers(model: nn.Module) -> Iterator[tuple[Any, nn.Module]]:
    """Yield each layer of an adapter with the layer of the base that it stands on.

    Args:
        model: A model with an adapter.
    """
    for module in unwrap(model).modules():
        if isinstance(base := module._modules.get("base_layer"), nn.Module):
            yield module, base


def is_masked(model: nn.Module) -> bool:
    """Return True if the adapter of a model is masked.

    Args:
        model: Any model.
    """
    return any(_MASK in module._buffers for module, _ in adapter_layers(model))


def _check_plain_lora(module: Any, name: str) -> None:
    """Raise unless an adapter layer adds scaling * B A to the weight of a Linear, and nothing else."""
    variants = getattr(module, "lora_variant", None)
    if variants is None or not hasattr(module, "lora_A"):
        raise ValueError(
            f"The adapter layer on {name} is a {type(module).__name__} without LoRA variants; masking needs the LoRA "
            "of peft>=0.20. Write LoraConfig(...), and pip install -U peft."
        )
    others = [type(variant).__name__ for variant in variants.values() if not isinstance(variant, MaskedLora)]
    unfit = {"on a convolution": isinstance(module.base_layer, nn.Conv1d)}
    unfit |= {"on experts in one parameter": any(expert_stacks(module.base_layer))}
    if others or any(unfit.values()):
        what = f"a {others[0]}" if others else next(where for where, here in unfit.items() if here)
        raise ValueError(
            f"The adapter layer on {name} is {what}, whose delta cannot be masked. Write a LoraConfig of the kind that "
            "PEFT makes by default."
        )


class MaskedLora:
    """A variant of LoRA, in the sense of PEFT: its delta is scaling * M * (B A), with the mask M of the base layer.

    PEFT calls these methods wherever a plain LoRA would add its own delta.
    """

    def supports_lora_conversion(self) -> bool:
        """Return False: a masked delta has no low rank."""
        return False

    def init(self, module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Do nothing; PEFT calls it when an adapter is added.

        Args:
            module: The LoRA layer.
            adapter_name: The name of the adapter.
            **kwargs: The adapter's config, and whatever else PEFT gives.
        """

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Add the masked delta's product with the input to the output of the base layer.

        Args:
            module: The LoRA layer.
            active_adapter: The name of the adapter.
            x: The input.
            result: The output of the base layer.
            **kwargs: Whatever else PEFT gives.

        Returns:
            The sum.
        """
        delta, scaling = masked_delta(module, active_adapter), module.scaling[active_adapter]
        bias = module.lora_B[active_adapter].bias
        weight = delta.t() if module.fan_in_fan_out else delta
        return result + functional.linear(
            module.lora_dropout[active_adapter](x), weight, None if bias is None else bias * scaling
        )

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the sum of a weight and the masked delta.

        Args:
            module: The LoRA layer.
            active_adapter: The name of the adapter.
            orig_weight: The weight.
        """
        return orig_weight + masked_delta(module, active_adapter).to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: nn.Parameter) -> None:
        """Add the masked delta to a weight in place.

        Args:
            module: The LoRA layer.
            active_adapter: The name of the adapter.
            orig_weight: The weight.
        """
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return a weight without the masked delta that was merged into it.

        Args:
            module: The LoRA layer.
            active_adapter: The name of the adapter.
            orig_weight: The merged weight.
        """
        return orig_weight.data - masked_delta(module, active_adapter).to(orig_weight.dtype)


def masked_delta(module: Any, adapter: str) -> Tensor:
    """Return the change of a masked LoRA to the weight of its base layer, in the shape of that weight.

    Args:
        module: The LoRA layer.
        adapter: The name of the adapter.
    """
    delta = module.get_delta_weight(adapter)
    return torch.where(getattr(module, _MASK), delta, torch.zeros((), dtype=delta.dtype, device=delta.device))
