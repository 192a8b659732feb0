"""Names of layers in files. Some families save their weights under other names than they compute with."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

INDICES = "weight_nxm_idx"  # beside "weight", in files and in memory: the packed indices of a layer


def names_in_files(model: PreTrainedModel, layers: Iterable[str]) -> dict[str, str]:
    """Return the names under which transformers saves layers.

    Args:
        model: The model, with or without weights.
        layers: Names of layers in the model.

    Returns:
        For each layer its name in files. A layer whose weight is not saved as one tensor of its own is left out.
    """
    keys = [f"{layer}.{tensor}" for layer in layers for tensor in ("weight", INDICES)]
    tensors = {key: torch.empty(0, device="meta") for key in keys}
    try:
        saved = revert_weight_conversion(model, dict(tensors))
    except Exception:  # a conversion that joins or splits tensors does not find what it needs
        return {}
    key_of = {id(tensor): key for key, tensor in saved.items()}
    names = {}
    for layer in layers:
        weight, indices = (key_of.get(id(tensors[f"{layer}.{tensor}"]), "") for tensor in ("weight", INDICES))
        name = weight.removesuffix(".weight")
        if name != weight and indices == f"{name}.{INDICES}":
            names[layer] = name
    return names
