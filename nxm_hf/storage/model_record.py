"""The sparsity record inside a model's own config, so that a later plain `save_pretrained` keeps it."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from torch import nn

from nxm_hf.config import MODEL_CONFIG_KEY, NxMConfig, SparsityRecord
from nxm_hf.layers.modules import plain_name, unwrap
from nxm_hf.layers.plan import Plan


def set_record(model: nn.Module, record: SparsityRecord) -> None:
    """Write the sparsity record into a model's config. A model without a config is left alone.

    Args:
        model: The model.
        record: The record of its weights.
    """
    if (config := getattr(unwrap(model), "config", None)) is not None:
        setattr(config, MODEL_CONFIG_KEY, record.to_dict())


def remove_record(model: nn.Module, only_if_trained: bool = False) -> None:
    """Remove the sparsity record from a model's config, because its weights are about to become dense.

    Args:
        model: The model.
        only_if_trained: Leave the record of layers that are all frozen: they stay sparse in any training.
    """
    config = getattr(unwrap(model), "config", None)
    if getattr(config, MODEL_CONFIG_KEY, None) and not (only_if_trained and is_frozen(model)):
        delattr(config, MODEL_CONFIG_KEY)


def read_record(model: nn.Module) -> SparsityRecord | None:
    """Read the sparsity record of a model's config.

    Args:
        model: The model.

    Returns:
        The record, with the layers as they are named in this model; None if the model has none.

    Raises:
        ValueError: If a newer version wrote it.
    """
    record = _record_as_saved(model)
    return None if record is None else replace(record, layers=names_in(unwrap(model), record.layers))


def names_in(model: nn.Module, layers: Mapping[str, str]) -> dict[str, str]:
    """Return the patterns of layers by the names that these have in a model with a head more or less.

    A layer "encoder.layer.0..." of a BertModel is "bert.encoder.layer.0..." in a BertForSequenceClassification.

    Args:
        model: The model, without wrappers.
        layers: The pattern of each layer, by a name from either class.
    """
    named = (*model.named_modules(), *model.named_parameters())  # experts are named as their parameter
    names = {plain_name(name) for name, _ in named}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def here(name: str) -> str:
        candidates = (name, f"{prefix}{name}", name.removeprefix(prefix))
        return next((candidate for candidate in candidates if candidate in names), name)

    return {here(name): pattern for name, pattern in layers.items()}


def record_of(plan: Plan, config: NxMConfig, density: float) -> SparsityRecord:
    """Describe a model whose deployed weights were verified.

    Args:
        plan: The sparse layers and their model.
        config: The config of the training.
        density: The measured density of the weights.

    Returns:
        The record to save with the model. That of a frozen model stays as it is.
    """
    if is_frozen(plan.model) and (record := read_record(plan.model)) is not None:
        return replace(record, density=density)
    return SparsityRecord(config, plan.layers, density)


def is_frozen(model: nn.Module) -> bool:
    """Return True if a model is recorded as sparse and none of its sparse layers trains, as under an adapter.

    Args:
        model: The model.
    """
    record = _record_as_saved(model)
    if record is None or _is_trained(unwrap(model), record.layers):
        return False
    parameters = {plain_name(name): parameter for name, parameter in unwrap(model).named_parameters()}
    names = names_in(unwrap(model), record.layers)
    weights = (parameters.get(key) for name in names for key in (f"{name}.weight", name))
    return not any(weight.requires_grad for weight in weights if weight is not None)


def _record_as_saved(model: nn.Module) -> SparsityRecord | None:
    """Return the record of a model's config, with the layers as they are named there."""
    payload = getattr(getattr(unwrap(model), "config", None), MODEL_CONFIG_KEY, None)
    return SparsityRecord.from_dict(payload) if payload else None


def _is_trained(model: nn.Module, names: Iterable[str]) -> bool:
    """Return True if the first layer that still has its recorded name trains. No names of parameters are made."""
    for name in names:
        with suppress(AttributeError):
            weight = getattr(model.get_submodule(name), "weight", None)
            return isinstance(weight, nn.Parameter) and weight.requires_grad
    return False
