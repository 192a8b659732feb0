"""Verification: check that every layer of a model, in memory or in a directory, holds its pattern with true zeros."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
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
from nxm_hf.storage.adapter_files import SavedAdapter, check_adapter_weights, read_adapter
from nxm_hf.storage.manifest import RESTORE, changed_files
from nxm_hf.storage.model_files import layer_weights, load_model, skeleton
from nxm_hf.storage.model_record import names_in, read_record
from nxm_hf.storage.model_source import model_directory
from nxm_hf.storage.quantized import as_numbers, check_readable, quantization_of
from nxm_hf.text import table

_COUNTS = ("nonzeros", "violations", "negative_zeros", "not_finite")
UNMERGED = "The adapter stands beside them unmerged; `nxm merge BASE ADAPTER OUT` makes one sparse model of both."


@dataclass(frozen=True)
class VerifiedLayer:
    """Describe the zeros of one layer.

    Args:
        name: Name of the layer.
        role: Role of the layer, such as "query".
        shape: Shape of its matrix, [out, in].
        pattern: The pattern that it must hold.
        nonzeros: Number of entries that are not zero.
        violations: Number of places that break the pattern.
        negative_zeros: Number of zeros that are -0.0.
        not_finite: Number of entries that are NaN.
    """

    name: str
    role: str
    shape: tuple[int, int]
    pattern: Pattern
    nonzeros: int
    violations: int
    negative_zeros: int
    not_finite: int

    @property
    def numel(self) -> int:
        """Return the number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def density(self) -> float:
        """Return the fraction of entries that are not zero."""
        return self.nonzeros / max(self.numel, 1)

    @property
    def problems(self) -> list[str]:
        """Return a sentence for each problem of the layer."""
        counts = (
            (self.violations, f"breaks {self.pattern} in {self.violations} places"),
            (self.negative_zeros, f"holds {self.negative_zeros} zeros that are -0.0"),
            (self.not_finite, f"holds {self.not_finite} entries that are NaN"),
        )
        return [f"{self.name} {what}." for count, what in counts if count]


@dataclass(frozen=True)
class Verification:
    """Describe the zeros of all layers of a model. It prints as a table.

    Args:
        layers: The result of each layer.
        absent: Names of layers that are recorded as sparse, but which the model does not have.
        note: A remark on what was verified, such as the base model of an adapter; "" without one.
        changed: Files of the directory that differ from its manifest, each with what is wrong with it.
    """

    layers: tuple[VerifiedLayer, ...]
    absent: tuple[str, ...] = ()
    note: str = ""
    changed: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Return True if every layer holds its pattern with true +0.0 zeros."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """Return a sentence for each problem of the model."""
        problems = [f"{name} {what}." for name, what in self.changed]
        problems += [problem for layer in self.layers for problem in layer.problems]
        problems += [f"{name} is recorded as sparse, and the model has no such layer." for name in self.absent]
        return problems or ([] if self.layers else ["No layer was found to verify."])

    @property
    def density(self) -> float:
        """Return the fraction of the entries of all layers that are not zero."""
        return sum(layer.nonzeros for layer in self.layers) / max(sum(layer.numel for layer in self.layers), 1)

    def raise_for_problems(self) -> None:
        """Raise a ValueError that lists the problems, if there are any.

        Raises:
            ValueError: If `ok` is False.
        """
        if not self.ok:
            shown = "\n".join(f"  {problem}" for problem in self.problems[:12])
            advice = (
                RESTORE
                if self.changed
                else "Were they trained on without nxm_hf? NxMTrainer(..., sparsity=...) prunes them again."
            )
            if any(layer.not_finite for layer in self.layers):
                advice = (
                    "The training has diverged. Lower the learning rate, or go back to a checkpoint before the NaN."
                )
            raise ValueError(
                f"{len(self.problems)} problems in the weights to deploy; nothing was written:\n{shown}\n{advice}"
            )

    def summary(self) -> "VerificationSummary":
        """Return the same with one line for each role and pattern."""
        return VerificationSummary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all that was found as a dict that JSON can hold."""
        layers = [{**vars(x), "pattern": str(x.pattern), "density": x.density} for x in self.layers]
        return {"ok": self.ok, "density": self.density, "problems": self.problems, "layers": layers}

    def __str__(self) -> str:
        rows = [
            (x.name, x.role, f"{x.shape[0]}x{x.shape[1]}", str(x.pattern), f"{x.density:.4f}", _mark(bool(x.problems)))
            for x in self.layers
        ]
        return f"{table(('layer', 'role', 'shape', 'pattern', 'density', ''), rows)}\n{self._verdict()}"

    def _verdict(self) -> str:
        """Return the last lines of a table: the verdict, and each problem."""
        verdict = "ok" if self.ok else f"{len(self.problems)} problems"
        lines = [f"{len(self.layers)} layers, density {self.density:.4f}: {verdict}", *self.problems]
        if self.changed:
            lines.append(RESTORE)
        if any(layer.violations for layer in self.layers):
            lines.append("A plain Trainer fills zeros again; NxMTrainer(model=...) without sparsity= keeps them.")
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


@dataclass(frozen=True)
class VerificationSummary:
    """Show a verification with one line for each role and pattern. It prints as a table.

    Args:
        verification: The verification of all layers.
    """

    verification: Verification

    def groups(self) -> list[dict[str, Any]]:
        """Return one dict for each role and pattern: its layers, density and layers with problems."""
        by_kind: dict[tuple[str, str], list[VerifiedLayer]] = {}
        for layer in self.verification.layers:
            by_kind.setdefault((layer.role, str(layer.pattern)), []).append(layer)
        return [
            {
                "role": role,
                "pattern": pattern,
                "layers": len(layers),
                "density": Verification(tuple(layers)).density,
                "layers_with_problems": sum(bool(layer.problems) for layer in layers),
            }
            for (role, pattern), layers in by_kind.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as a dict that JSON can hold."""
        whole = self.verification
        return {"ok": whole.ok, "density": whole.density, "problems": whole.problems, "groups": self.groups()}

    def __str__(self) -> str:
        rows = [
            (x["role"], x["pattern"], str(x["layers"]), f"{x['density']:.4f}", _mark(x["layers_with_problems"]))
            for x in self.groups()
        ]
        return f"{table(('role', 'pattern', 'layers', 'density', ''), rows)}\n{self.verification._verdict()}"


def verify(model_or_dir: nn.Module | str | Path, pattern: str | Pattern | None = None) -> Verification:
    """Check that every sparse layer of a model holds its pattern, with zeros that are +0.0.

    The layers are those that the model's record names: `nxm_config.json`, or the copy in its `config.json`. Files that
    `nxm_manifest.json` names are compared with it. Of a model that was quantized after it became sparse, the numbers
    that its weights stand for are checked. Of a model with an adapter, the layers of the base are: the adapter stands
    beside them until it is merged.

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
    changed = tuple(changed_files(model_or_dir).items())
    try:
        return replace(_in_directory(model_or_dir, pattern), changed=changed)
    except (OSError, ValueError):
        if not changed:
            raise
        return Verification((), changed=changed)  # what cannot be read is among the changed files


def _in_directory(model_or_dir: str | Path, pattern: Pattern | None) -> Verification:
    if (adapter := read_adapter(model_or_dir)) is not None:
        return _in_base(adapter, pattern)
    model = skeleton(model_or_dir)
    return _in_files(model_or_dir, model, _record_in(model_or_dir, pattern), pattern)


def _in_files(
    folder: str | Path, model: nn.Module, record: dict[str, str] | None, pattern: Pattern | None
) -> Verification:
    if quantization_of(cast(Any, model).config) is not None:
        return _in_memory(load_model(folder), record, pattern)
    layers, absent = _recorded(model, record, pattern)
    weights = layer_weights(folder, model, [layer for layer, _ in layers])
    found = (_look(*pair, _matrix(pair[0], weight)) for pair, weight in zip(layers, weights, strict=True))
    return Verification(tuple(found), absent)


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


def verify_targets(targets: Iterable[Target]) -> Verification:
    """Check the weights of targets as they are in memory.

    Args:
        targets: The layers, each with its pattern.

    Returns:
        The verification. If the weights are sharded, every process calls this, and gets the verification of all parts.
    """
    targets = tuple(targets)
    shards = targets[0].shards if targets else None
    if shards is None:
        return Verification(
            tuple(_look(target.layer, target.pattern, _matrix(target.layer, target.layer.weight)) for target in targets)
        )
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
    counts = pattern.count(matrix)
    return VerifiedLayer(
        name=layer.name,
        role=layer.role,
        shape=(matrix.shape[0], matrix.shape[1]),
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


def _mark(problems: int) -> str:
    """Return the last cell of a row of a table. The problems themselves are listed below it, once."""
    return "PROBLEM" if problems else ""
