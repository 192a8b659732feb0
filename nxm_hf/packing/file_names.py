"""Names of weights in files. Some families save their weights under other names, or in other pieces, than in memory."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxm_hf.config.versions import as_saved

INDICES = "weight_nxm_idx"  # beside "weight", in files and in memory: the packed indices of a layer


def names_in_files(model: PreTrainedModel, layers: Iterable[str]) -> dict[str, str]:
    """Return the names under which transformers saves layers.

    Args:
        model: The model, with or without weights.
        layers: Names of layers in the model.

    Returns:
        For each layer its name in files. A layer whose weight is not saved as one tensor of its own is left out.
    """
    layers = list(layers)
    tensors = {f"{layer}.{tensor}": torch.empty(0, device="meta") for layer in layers for tensor in ("weight", INDICES)}
    keys = _kept_whole(tensors, _as_saved(model, tensors))
    names = {}
    for layer in layers:
        weight, indices = (keys.get(f"{layer}.{tensor}", "") for tensor in ("weight", INDICES))
        name = weight.removesuffix(".weight")
        if name != weight and indices == f"{name}.{INDICES}":
            names[layer] = name
    return names


def keys_in_files(model: nn.Module) -> dict[str, str]:
    """Return the names under which the tensors of a model are saved.

    Args:
        model: The model, without wrappers, with or without weights. Only models of transformers are ever renamed.

    Returns:
        For each name in the state dict the name in files. A tensor that is saved in pieces, or joined with others, is
        left out.
    """
    tensors = {key: torch.empty(tensor.shape, device="meta") for key, tensor in model.state_dict().items()}
    saved = _as_saved(model, tensors) if isinstance(model, PreTrainedModel) else {}
    return _kept_whole(tensors, saved or tensors)


def pieces_in_files(model: nn.Module, key: str, shape: Sequence[int], device: str = "cpu") -> dict[str, Tensor]:
    """Return the pieces in which transformers saves one tensor, such as the matrices of experts.

    Args:
        model: The model, without wrappers, with or without weights.
        key: The name of the tensor in the state dict of the model.
        shape: The shape of the tensor.
        device: Where to put the places; "meta" for the names and shapes of the pieces alone.

    Returns:
        For each piece, by its name in files, the place in the flat tensor of each of its entries. It is empty if the
        tensor is saved joined with others.
    """
    if not isinstance(model, PreTrainedModel):
        return {}
    sizes = torch.Size(shape)
    return _as_saved(model, {key: torch.arange(sizes.numel(), device=device).view(sizes)})


def is_converted(model: nn.Module) -> bool:
    """Return True if any tensor of a model is saved under another name, or in another form, than it has in memory.

    Args:
        model: The model, without wrappers.
    """
    names = keys_in_files(model)
    return any(names.get(key) != key for key in model.state_dict())


def _kept_whole(tensors: dict[str, Tensor], saved: dict[str, Tensor]) -> dict[str, str]:
    """Return the new name of each tensor that is saved as it is."""
    name_of = {id(tensor): name for name, tensor in saved.items()}
    return {key: name_of[id(tensor)] for key, tensor in tensors.items() if id(tensor) in name_of}


def _as_saved(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what `save_pretrained` would write of tensors, by their names in files."""
    try:
        saved: dict[str, Any] = as_saved(model, tensors)
    except Exception:  # a conversion that joins or splits tensors does not find what it needs
        return {}
    return saved
