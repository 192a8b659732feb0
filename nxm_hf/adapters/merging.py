"""Merging: add an adapter to the weights of its sparse base, and keep these sparse."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nxm_hf.config import SparsityRecord
from nxm_hf.layers.find import Layer, find_layers
from nxm_hf.layers.modules import is_peft_model, unwrap, without_wrappers
from nxm_hf.methods import keep
from nxm_hf.patterns import parse
from nxm_hf.pruners import OneShot
from nxm_hf.pruning.prune import prune
from nxm_hf.storage.model_record import read_record, set_record
from nxm_hf.storage.verify import verify
from nxm_hf.text import table

logger = logging.getLogger("nxm_hf")


@dataclass(frozen=True)
class MergedLayer:
    """Describe the merge of an adapter into one sparse layer.

    Args:
        name: The name of the layer.
        role: Its role, such as "query".
        shape: (out, in) of its matrix.
        pattern: The pattern that it holds.
        change: The norm of the adapter's change to the weight.
        dropped: The norm of the difference between that sum and the sparse weight.
    """

    name: str
    role: str
    shape: tuple[int, int]
    pattern: str
    change: float
    dropped: float


@dataclass(frozen=True)
class MergeResult:
    """Describe a merge. It prints as a table.

    Args:
        model: The merged model, which needs neither PEFT nor nxm_hf.
        layers: The result of each sparse layer.
        method: The method that pruned the sum, or None if the sum was masked.
    """

    model: PreTrainedModel
    layers: tuple[MergedLayer, ...]
    method: str | None

    @property
    def change(self) -> float:
        """Return the norm of the adapter's change to all sparse layers together."""
        return sum(layer.change**2 for layer in self.layers) ** 0.5

    @property
    def dropped(self) -> float:
        """Return the norm of the difference between the sums and the sparse weights, over all layers together."""
        return sum(layer.dropped**2 for layer in self.layers) ** 0.5

    @property
    def is_exact(self) -> bool:
        """Return True if the merged weights are the sums."""
        return self.dropped == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a dict that JSON can hold."""
        figures = {"method": self.method, "change": self.change, "dropped": self.dropped}
        return {**figures, "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        rows = [
            (x.name, x.role, f"{x.shape[0]}x{x.shape[1]}", x.pattern, f"{x.change:.4f}", f"{x.dropped:.4f}")
            for x in self.layers
        ]
        return f"{table(('layer', 'role', 'shape', 'pattern', 'change', 'dropped'), rows)}\n{self.verdict}"

    @property
    def verdict(self) -> str:
        """Return one or two sentences on what the merge lost."""
        if self.is_exact:
            return f"{len(self.layers)} layers: the merge is exact."
        if self.method is not None:
            return f"{len(self.layers)} layers, pruned by {self.method}; the norms are of the weights, not of outputs."
        return (
            f"{len(self.layers)} layers: the masks dropped a part of norm {self.dropped:.4g} of the adapter's change, "
            f"whose norm is {self.change:.4g}. A LoRA that is trained after nxm_hf.mask_adapter(model) loses nothing; "
            "method=, with calibration=, prunes the sum instead."
        )


def merge_adapter(
    model: nn.Module,
    method: str | OneShot | None = None,
    calibration: str | Path | Iterable | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Add the active adapter of a model to its sparse base, and keep the base sparse.

    Without `method`, the masks of the base are kept. That is exact for a masked adapter, see `mask_adapter`. For any
    other, the adapter's change to pruned weights is dropped, and a warning says how large it is.

    Args:
        model: A PeftModel whose base is sparse. It is used up, as by PEFT's `merge_and_unload`.
        method: Prune the sum anew by this method of `nxm_hf.prune`, instead of masking it.
        calibration: Calibration data for `method`, as in `nxm_hf.prune`.
        tokenizer: The tokenizer of the texts, for `method`; as in `nxm_hf.prune`.
        **options: Other options of `nxm_hf.prune`, for `method`, such as `samples=64`.

    Returns:
        The model of transformers, with its record of being sparse.

    Raises:
        ValueError: If there is no adapter, or the base is not sparse or is quantized.
    """
    result = merge(model, method, calibration, tokenizer, **options)
    if not result.is_exact:
        logger.warning("%s", result.verdict)
    return result.model


def merge(
    model: nn.Module,
    method: str | OneShot | None = None,
    calibration: str | Path | Iterable | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> MergeResult:
    """Merge as `merge_adapter` does, and return a row for each layer.

    Args:
        model: See `merge_adapter`.
        method: See `merge_adapter`.
        calibration: See `merge_adapter`.
        tokenizer: See `merge_adapter`.
        **options: See `merge_adapter`.

    Returns:
        The merged model and the figures of its layers.

    Raises:
        ValueError: As in `merge_adapter`.
    """
    record = _check(model, method, calibration, options)
    before = {layer.name: layer.weight.detach().clone() for layer in _sparse(model, record)}
    merged = cast(Any, without_wrappers(model)).merge_and_unload(safe_merge=True)
    merged.requires_grad_(True)  # as from_pretrained returns it; PEFT has frozen it
    layers = _sparse(merged, record)
    sums = {layer.name: layer.weight.detach().clone() for layer in layers}
    if method is None:
        for layer in layers:
            _keep_mask(layer, before[layer.name], record.layers[layer.name])
    else:
        pattern = cast(Any, record.config.pattern)
        prune(merged, pattern, method, calibration, tokenizer, include=list(record.layers), **options)
        record = read_record(merged) or record
    set_record(merged, record)
    verification = verify(merged)
    verification.raise_for_problems()
    set_record(merged, replace(record, density=verification.density))
    figures = (_figures(layer, record, before[layer.name], sums[layer.name]) for layer in layers)
    return MergeResult(merged, tuple(figures), None if method is None else _name_of(method))


def _check(model: nn.Module, method: object, calibration: object, options: dict[str, Any]) -> SparsityRecord:
    """Return the record of the base, if the model can be merged."""
    if not is_peft_model(without_wrappers(model)):
        raise ValueError(
            f"merge_adapter takes a PeftModel, and got a {type(model).__name__}. Load the adapter with "
            "nxm_hf.load_adapter(base, DIR), or put it on with peft.get_peft_model."
        )
    if getattr(unwrap(model), "hf_quantizer", None) is not None:
        raise ValueError(
            "The base of this adapter is quantized, so the sum cannot hold a mask. Load the base without "
            "quantization_config, put the adapter on it with nxm_hf.load_adapter, and quantize the merged model."
        )
    if method is None and (calibration is not None or options):
        given = ", ".join(["calibration", *options] if calibration is not None else options)
        raise ValueError(f'Without method=, the sum is masked, and {given} has no effect. Write method="alps".')
    record = read_record(model)
    if record is None:
        raise ValueError(
            "The base of this adapter has no record of being sparse. Merge with model.merge_and_unload() of PEFT, and "
            'then prune: nxm_hf.prune(model, "2:4").'
        )
    verify(model).raise_for_problems()
    return record


def _sparse(model: nn.Module, record: SparsityRecord) -> list[Layer]:
    return [layer for layer in find_layers(model) if layer.name in record.layers]


@torch.no_grad()
def _keep_mask(layer: Layer, before: Tensor, pattern: str) -> None:
    """Set the entries that the base's mask prunes to +0.0."""
    keep(layer.matrix(layer.weight), parse(pattern).mask(layer.matrix(before).abs()))


def _figures(layer: Layer, record: SparsityRecord, before: Tensor, total: Tensor) -> MergedLayer:
    change, dropped = ((total.double() - other.double()).norm().item() for other in (before, layer.weight.detach()))
    return MergedLayer(layer.name, layer.role, layer.shape, record.layers[layer.name], change, dropped)


def _name_of(method: str | OneShot) -> str:
    return method if isinstance(method, str) else type(method).__name__.lower()
