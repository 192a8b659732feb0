"""The sparsity record inside a model's own config, so that a later plain `save_pretrained` keeps it."""

from torch import nn

from nxm_hf.config import MODEL_CONFIG_KEY, SparsityRecord
from nxm_hf.layers.modules import unwrap


def set_record(model: nn.Module, record: SparsityRecord) -> None:
    """Write the sparsity record into a model's config. A model without a config is left alone.

    Args:
        model: The model.
        record: What its weights now hold.
    """
    if (config := getattr(unwrap(model), "config", None)) is not None:
        setattr(config, MODEL_CONFIG_KEY, record.to_dict())


def remove_record(model: nn.Module) -> None:
    """Remove the sparsity record from a model's config, because its weights are about to become dense.

    Args:
        model: The model.
    """
    config = getattr(unwrap(model), "config", None)
    if getattr(config, MODEL_CONFIG_KEY, None):
        delattr(config, MODEL_CONFIG_KEY)


def read_record(model: nn.Module) -> SparsityRecord | None:
    """Read the sparsity record of a model's config.

    Args:
        model: The model.

    Returns:
        The record, or None if the model has none.

    Raises:
        ValueError: If a newer version wrote it.
    """
    payload = getattr(getattr(unwrap(model), "config", None), MODEL_CONFIG_KEY, None)
    return SparsityRecord.from_dict(payload) if payload else None
