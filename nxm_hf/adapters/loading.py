"""Loading adapters, masked or not, that PEFT or NxMTrainer saved."""

from pathlib import Path
from typing import Any

from torch import nn

from nxm_hf.adapters.masked import mask_adapter
from nxm_hf.layers.modules import has_adapter, without_wrappers
from nxm_hf.layers.sharding import shard_like
from nxm_hf.storage.adapter_files import ADAPTER_CONFIG, check_adapter_weights, read_adapter
from nxm_hf.storage.model_source import model_directory
from nxm_hf.text import shortened


def load_adapter(model: nn.Module, adapter: str | Path, is_trainable: bool = False) -> Any:
    """Put a saved adapter on a base model. A masked adapter, which PEFT alone refuses to load, is masked again.

    Args:
        model: The base model, without an adapter. PEFT changes it in place.
        adapter: The directory of the adapter, or its name on the Hub.
        is_trainable: Whether the adapter is to be trained further.

    Returns:
        The PeftModel.

    Raises:
        ValueError: If the model has an adapter already, if the adapter is of another model, or if it is masked and the
            model is not sparse.
        FileNotFoundError: If there is no adapter.
        ImportError: If PEFT is not installed.
    """
    folder = model_directory(str(adapter))
    saved = read_adapter(folder)
    if saved is None:
        raise FileNotFoundError(f"{adapter} holds no {ADAPTER_CONFIG}. Name a directory that PEFT saved an adapter to.")
    check_adapter_weights(folder)
    if has_adapter(model):
        raise ValueError(
            "This model has an adapter already. Merge it first with nxm_hf.merge_adapter(model), or load the base anew."
        )
    peft, another = import_peft(), f"so it is of another model than this {type(model).__name__}. Load the base in the"
    config = {**saved.config, **({"init_lora_weights": True} if saved.is_masked else {})}
    try:
        loaded = peft.PeftModel.from_pretrained(
            model, folder, config=peft.PeftConfig.from_peft_type(**config), is_trainable=is_trainable
        )
    except RuntimeError as error:  # of load_state_dict
        raise ValueError(
            f"{adapter} has weights of other shapes, {another} class and size that the adapter was trained on."
        ) from error
    absent = peft.get_peft_model_state_dict(loaded).keys() - peft.load_peft_weights(folder, device="cpu").keys()
    if absent:
        raise ValueError(
            f"{adapter} lacks {shortened(sorted(absent))}, {another} class that the adapter was trained on."
        )
    return mask_adapter(loaded) if saved.is_masked else loaded


def restore_adapter(folder: str | Path, model: nn.Module) -> None:
    """Copy the weights of an adapter in a checkpoint into a model that has this adapter, in place.

    Args:
        folder: The checkpoint.
        model: The model with the adapter. If it is sharded, each process keeps its own part.
    """
    peft, inner = import_peft(), without_wrappers(model)
    own, saved = peft.get_peft_model_state_dict(inner), peft.load_peft_weights(str(folder), device="cpu")
    parts = {name: shard_like(weight, own.get(name, weight)) for name, weight in saved.items()}
    peft.set_peft_model_state_dict(inner, parts, inner.active_adapter)


def import_peft() -> Any:
    """Return the package PEFT.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("Adapters need PEFT. Install it: pip install peft.") from error
    return peft
