"""Verification: check that every layer of a model, in memory or in a directory, holds its pattern with true zeros."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nxm_hf.config import CONFIG_FILE, MODEL_CONFIG_KEY, SparsityRecord
from nxm_hf.layers.find import Layer, find_layers
from nxm_hf.layers.modules import has_adapter, unwrap
from nxm_hf.layers.plan import Target
from nxm_hf.layers.sharding import reshard, whole
from nxm_hf.packing import PackedLinear
from nxm_hf.patterns import Pattern, parse
from nxm_hf.solvers.entry_counts import EntryCounts
from nxm_hf.storage.adapter_files import SavedAdapter, check_adapter_weights, read_adapter
from nxm_hf.storage.file_blocks import Reader
from nxm_hf.storage.layer_counts import LayerCounts
from nxm_hf.storage.manifest import MANIFEST_FILE, changed_files
from nxm_hf.storage.model_files import layer_weights, load_model, skeleton
from nxm_hf.storage.model_record import names_in, read_record
from nxm_hf.storage.model_source import model_directory
from nxm_hf.storage.quantized import as_numbers, check_readable, quantization_of
from nxm_hf.storage.replacing import finish_replacing
from nxm_hf.storage.verification import Verification, VerifiedLayer
from nxm_hf.storage.weight_files import variant_to_read, variants_in

_COUNTS = ("nonzeros", "violations", "negative_zeros", "not_finite")
NO_MANIFEST = f"There is no {MANIFEST_FILE}, so only the zeros of these layers were checked, and not whole files."
UNMERGED = "The adapter stands beside them unmerged; `nxm merge BASE ADAPTER OUT` makes one sparse model of both."


def verify(model_or_dir: nn.Module | str | Path, pattern: str | Pattern | None = None) -> Verification:
    """Check that every sparse layer of a model holds its pattern, with zeros that are +0.0.

    The layers are those that the model's record names: `nxm_config.json`, or the copy in its `config.json`. Files that
    `nxm_manifest.json` names are compared with it. A note says so if there is no such file. Of a model that was
    quantized after it became sparse, the numbers that its weights stand for are checked. Of a model with an adapter,
    the layers of the base are: the adapter stands beside them until it is merged. Of a directory without plain weights,
    the only variant is verified (`save_pretrained(variant=...)`).

    Args:
        model_or_dir: A model, or the directory of a saved model or adapter. If the weights of a model are sharded,
            every process calls this.
        pattern: The pattern to check, instead of the recorded one. A model without a record needs it. All layers that
            nxm_hf prunes by default are then checked.

    Returns:
        The verification. `.ok` is True if there are no problems.

    Raises:
        TypeError: If it is neither a model nor a path.
        ValueError: If a model in memory has no record and `pattern` is not given. Also if the weights are quantized in
            a form whose zeros cannot be counted.
        FileNotFoundError: If a directory has no record and no `pattern` is given, or holds no model.
    """
    pattern = None if pattern is None else parse(pattern)
    if not isinstance(model_or_dir, (str, Path)):
        found = _in_memory(model_or_dir, _record_of(model_or_dir), pattern)
        return replace(found, note=UNMERGED) if has_adapter(model_or_dir) else found
    finish_replacing(model_or_dir)
    comparison = _Comparison(model_or_dir)
    try:
        found = _in_directory(model_or_dir, pattern, comparison)
    except (OSError, ValueError):
        if not comparison.changed():
            raise
        found = Verification(())  # what cannot be read is among the changed files
    notes = [found.note, "" if (Path(model_or_dir) / MANIFEST_FILE).exists() else NO_MANIFEST]
    if (unread := variants_in(model_or_dir)) and variant_to_read(model_or_dir) is None:
        notes.append(
            f"These are the plain weights. Not checked: {', '.join(unread)}. Load one by from_pretrained(DIR, "
            f"variant={unread[0]!r}), and verify(model)."
        )
    return replace(found, changed=comparison.changed(), note="\n".join(filter(None, notes)))


class _Comparison:
    """Compare a directory with its manifest once, when others can look at what is read for it.

    Args:
        folder: The directory.
    """

    def __init__(self, folder: str | Path):
        self.folder = folder
        self._changed: tuple[tuple[str, str], ...] | None = None

    def changed(self, readers: Mapping[str, Sequence[Reader]] | None = None) -> tuple[tuple[str, str], ...]:
        """Return the files that differ. Only the first call reads files.

        Args:
            readers: By name of a file, the functions to call with its blocks.
        """
        if self._changed is None:
            self._changed = tuple(changed_files(self.folder, readers=readers).items())
        return self._changed


def _in_directory(folder: str | Path, pattern: Pattern | None, comparison: _Comparison) -> Verification:
    if (adapter := read_adapter(folder)) is not None:
        return _in_base(adapter, pattern)
    model = skeleton(folder)
    return _in_files(folder, model, _record_in(folder, pattern), pattern, comparison)


def _in_files(
    folder: str | Path,
    model: nn.Module,
    record: dict[str, str] | None,
    pattern: Pattern | None,
    comparison: _Comparison | None = None,
) -> Verification:
    """Verify the weights in files: those that are read for a comparison at once, and then all others."""
    if quantization_of(cast(Any, model).config) is not None:
        return _in_memory(load_model(folder), record, pattern)
    layers, absent = _recorded(model, record, pattern)
    found: dict[str, VerifiedLayer] = {}
    if comparison is not None:
        counts = LayerCounts(folder, layers)
        comparison.changed(counts.by_file)
        for layer, held in layers:
            if (counted := counts.get(layer)) is not None:
                found[layer.name] = _verified(layer, held, layer.shape, counted)
    rest = [pair for pair in layers if pair[0].name not in found]
    weights = layer_weights(folder, model, [layer for layer, _ in rest]) if rest else ()
    for (layer, held), weight in zip(rest, weights, strict=True):
        found[layer.name] = _look(layer, held, _matrix(layer, weight))
    return Verification(tuple(found[layer.name] for layer, _ in layers), absent)


def _in_base(adapter: SavedAdapter, pattern: Pattern | None) -> Verification:
    """Verify the base model of an adapter, and that the adapter can be read."""
    check_adapter_weights(adapter.folder)
    base = model_directory(adapter.base)
    model = skeleton(base)
    record: dict[str, str] | None
    try:
        record = names_in(model, SparsityRecord.from_pretrained(adapter.folder).layers)
    except FileNotFoundError:  # a plain Trainer saved the adapter
        record = _record_in(base, pattern)
    note = f"These are the layers of the base model {adapter.base}. {UNMERGED}"
    return replace(_in_files(base, model, record, pattern), note=note)


def _dense_skeleton(model: nn.Module) -> nn.Module:
    """Return the model itself, or one without weights and with dense layers if some of its layers are packed."""
    if not any(isinstance(module, PackedLinear) for module in model.modules()):
        return model
    plain: Any = unwrap(model)
    with torch.device("meta"):
        return cast(nn.Module, type(plain)(copy.deepcopy(plain.config)))


def _weight_in(model: nn.Module, layer: Layer) -> Tensor:
    """Return the weight of a layer of a model, unpacked if it is packed there."""
    if not layer.weight.is_meta:
        return whole(layer.weight)
    module = unwrap(model).get_submodule(layer.module_name)
    return module.dense_weight() if isinstance(module, PackedLinear) else cast(Tensor, getattr(module, layer.parameter))


def verify_targets(targets: Iterable[Target], counted: Mapping[str, EntryCounts] | None = None) -> Verification:
    """Check the weights of targets as they are in memory.

    Args:
        targets: The layers, each with its pattern.
        counted: What has been counted in whole weights already, by the names of layers.

    Returns:
        The verification. If the weights are sharded, every process calls this, and gets the verification of all parts.
    """
    targets = tuple(targets)
    shards = targets[0].shards if targets else None
    if shards is None:
        return Verification(tuple(_look_unless(target, (counted or {}).get(target.name)) for target in targets))
    parts = [_look(target.layer, target.pattern_here, target.matrix()) for target in targets]
    sums = shards.total(torch.tensor([[getattr(part, count) for count in _COUNTS] for part in parts]))
    found = []
    for target, part, numbers in zip(targets, parts, sums.tolist(), strict=True):
        counts = dict(zip(_COUNTS, numbers, strict=True))
        if target.pattern_here is not target.pattern:  # a pattern of all processes counts for all
            counts["violations"] = part.violations
        found.append(replace(part, shape=target.layer.shape, pattern=target.pattern, **counts))
    return Verification(tuple(found))


def verify_written(folder: str | Path, model: nn.Module, targets: Iterable[Target]) -> Verification:
    """Check the weights of targets as they are in files.

    Args:
        folder: Directory of the files.
        model: A model of the class that saved them; its own weights are not looked at.
        targets: Its layers, each with its pattern.

    Returns:
        What was found.
    """
    targets = tuple(targets)
    weights = layer_weights(folder, model, [target.layer for target in targets])
    pairs = zip(targets, weights, strict=True)
    return Verification(
        tuple(_look(target.layer, target.pattern, _matrix(target.layer, weight)) for target, weight in pairs)
    )


def _in_memory(model: nn.Module, record: dict[str, str] | None, pattern: Pattern | None) -> Verification:
    reshard(model)
    layers, absent = _recorded(_dense_skeleton(model), record, pattern)
    check_readable(model, absent)
    found = (_look(layer, held, _matrix(layer, _weight_in(model, layer))) for layer, held in layers)
    return Verification(tuple(found), absent)


@torch.no_grad()
def _matrix(layer: Layer, weight: Tensor) -> Tensor:
    """Return the numbers that a weight stands for, as [out, in]."""
    return layer.matrix(as_numbers(layer, weight).detach())


@torch.no_grad()
def _look(layer: Layer, pattern: Pattern, matrix: Tensor) -> VerifiedLayer:
    return _verified(layer, pattern, (matrix.shape[0], matrix.shape[1]), pattern.count(matrix))


def _look_unless(target: Target, counted: EntryCounts | None) -> VerifiedLayer:
    """Return what was counted in a weight, or count now."""
    if counted is not None:
        return _verified(target.layer, target.pattern, target.layer.shape, counted)
    return _look(target.layer, target.pattern, _matrix(target.layer, target.layer.weight))


def _verified(layer: Layer, pattern: Pattern, shape: tuple[int, int], counts: EntryCounts) -> VerifiedLayer:
    return VerifiedLayer(
        name=layer.name,
        role=layer.role,
        shape=shape,
        pattern=pattern,
        nonzeros=counts.nonzeros,
        violations=counts.violations,
        negative_zeros=counts.negative_zeros,
        not_finite=counts.nans,
    )


def _recorded(
    model: nn.Module, record: dict[str, str] | None, pattern: Pattern | None
) -> tuple[list[tuple[Layer, Pattern]], tuple[str, ...]]:
    """Return the layers to check, each with its pattern, and the recorded names that the model does not have."""
    if record is None:
        if pattern is None:
            raise ValueError(
                f'This {type(model).__name__} has no record of being sparse; say what it should hold: pattern="2:4".'
            )
        return [(layer, pattern) for layer in find_layers(model)], ()
    layers = {layer.name: layer for layer in find_layers(model)}
    present = [(layers[name], pattern or parse(text)) for name, text in record.items() if name in layers]
    return present, tuple(name for name in record if name not in layers)


def _record_of(model: nn.Module) -> dict[str, str] | None:
    record = read_record(model)
    return record.layers if record else None


def _record_in(folder: str | Path, pattern: Pattern | None) -> dict[str, str] | None:
    try:
        return SparsityRecord.from_pretrained(folder).layers
    except FileNotFoundError:
        if pattern is None:
            raise FileNotFoundError(
                f"{folder} holds no {CONFIG_FILE} that names layers, and no {MODEL_CONFIG_KEY!r} in its config.json. "
                "Say what it should hold: --pattern 2:4, or verify(dir, pattern='2:4')."
            ) from None
        return None
