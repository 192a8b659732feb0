"""Restoring: copy the weights of a directory into a model in memory, also where the two name them differently.

`from_pretrained` converts the weights of models that transformers saves under other names. A Trainer that resumes, or
loads the best model, does not.
"""

from collections.abc import Collection
from functools import reduce
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from nxm_hf.layers.modules import has_adapter, without_wrappers
from nxm_hf.layers.sharding import shard_like
from nxm_hf.packing import is_converted
from nxm_hf.storage.converted_weights import ConvertedWeights
from nxm_hf.storage.model_files import load_with_missing
from nxm_hf.storage.weight_files import WeightFiles


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Copy the weights of a directory into a model, in place. Weights that the directory lacks stay as they are.

    Args:
        folder: Directory of the model.
        model: The model. If it is sharded, each process reads its own part.

    Raises:
        ValueError: If transformers has to convert some of the weights, and cannot load the directory.
    """
    own = model.state_dict()
    with WeightFiles(folder) as files:
        converted = ConvertedWeights(files, model)
        found = {key: converted[key] for key in own if key in converted}
    if lost := _without(model, found):
        found |= _loaded(folder, model, lost)
    model.load_state_dict({key: shard_like(found[key], own[key]) for key in found}, strict=False)


def needs_conversion(folder: str | Path, model: nn.Module) -> bool:
    """Return True if a plain Trainer does not find all weights of a model in a directory.

    Args:
        folder: Directory of the model.
        model: The model, in wrappers or not. A Trainer finds the files that containers and adapters save.
    """
    model = without_wrappers(model)
    if not isinstance(model, PreTrainedModel) or has_adapter(model):
        return False
    try:
        with WeightFiles(folder) as files:
            present = {key for key in model.state_dict() if key in files}
    except FileNotFoundError:  # a Trainer that is asked to can write pickles
        return False
    return bool(_without(model, present)) or is_converted(model)


def restore_converted(folder: str | Path, model: nn.Module) -> None:
    """Copy the weights of a checkpoint into a model that a plain Trainer has just failed to restore.

    Args:
        folder: The checkpoint.
        model: The model, in wrappers or not. Nothing is done if a plain Trainer restores it whole.
    """
    if needs_conversion(folder, model):
        load_weights(folder, without_wrappers(model))


def _without(model: nn.Module, present: Collection[str]) -> list[str]:
    """Return the parameters of a model that are not present under any of their names; tied ones have several."""
    named = dict(model.named_parameters(remove_duplicate=False))
    known = {id(parameter) for key, parameter in named.items() if key in present}
    return [key for key, parameter in named.items() if id(parameter) not in known]


def _loaded(folder: str | Path, model: nn.Module, keys: Collection[str]) -> dict[str, Tensor]:
    """Load a directory as `from_pretrained` does, and return some of its weights by their names in memory.

    They are read in the widest type of the model, so that no weight of it is rounded.
    """
    if not isinstance(model, PreTrainedModel):
        return {}
    cls = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    dtypes = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    dtype = reduce(torch.promote_types, dtypes, torch.bfloat16)
    loaded, missing = load_with_missing(cast(type[PreTrainedModel], cls), folder, dtype=dtype)
    return {key: tensor for key, tensor in loaded.state_dict().items() if key in keys and key not in missing}
