"""The result of one-shot pruning: a row for each layer, with the error of its outputs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nxm_hf.config import NxMConfig, SparsityRecord
from nxm_hf.config.hub import write_text
from nxm_hf.text import table

RESULT_FILE = "nxm_pruning.json"
FORMAT = 1
_NUMBER = (int, float)
_LARGEST = 2**63  # of whole numbers; larger ones may not fit into a float


@dataclass(frozen=True)
class PrunedLayer:
    """The result of pruning one layer.

    Errors are the squared error of the layer's outputs over the calibration tokens, as a share of the outputs. They
    are None without calibration data.

    Args:
        name: The name of the layer's module.
        role: Its role in a Transformer block, such as "query" or "ffn_in".
        shape: (out, in) of the weight.
        pattern: The pattern that the weight holds, such as "2:4".
        density: The fraction of the entries that are not zero.
        kept_energy: The sum of squares of the kept entries before pruning, as a share of that of all entries.
        magnitude_error: The error that pruning by magnitude would have caused.
        error: The error of this pruning.
        tokens: The number of calibration tokens that the layer received.
        note: A remark, for example that the layer was never called; "" without one.
    """

    name: str
    role: str
    shape: tuple[int, int]
    pattern: str
    density: float
    kept_energy: float
    magnitude_error: float | None
    error: float | None
    tokens: int | None
    note: str = ""

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> "PrunedLayer":
        """Read a layer that `dataclasses.asdict` wrote and JSON changed.

        Args:
            payload: The fields by name, with the shape as a list.

        Returns:
            The layer.

        Raises:
            TypeError: If a field is of another type.
        """
        layer = cls(**{**payload, "shape": tuple(payload["shape"])})
        _check_types(layer, str, "name", "role", "pattern", "note")
        _check_types(layer, _NUMBER, "density", "kept_energy")
        _check_types(layer, (*_NUMBER, type(None)), "magnitude_error", "error", "tokens")
        if [type(side) for side in layer.shape] != [int, int] or max(map(abs, layer.shape)) > _LARGEST:
            raise TypeError(f"shape is {str(payload['shape'])[:60]}")
        return layer

    def row(self) -> tuple[str, ...]:
        """Return the cells of the layer's row in the printed table."""
        numbers = (self.density, self.kept_energy, self.magnitude_error, self.error)
        size = f"{self.shape[0]}x{self.shape[1]}"
        return self.name, self.role, size, self.pattern, *map(_four_digits, numbers), self.note


@dataclass(frozen=True)
class ReconstructedBlock:
    """The result of fitting a pruned block to the outputs of the dense block.

    Errors are the squared error of the block's outputs over the calibration tokens, as a share of the outputs.

    Args:
        name: The name of the block.
        before: The error of the pruned block.
        after: The error after reconstruction; never larger.
    """

    name: str
    before: float
    after: float

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> "ReconstructedBlock":
        """Read a block that `dataclasses.asdict` wrote.

        Args:
            payload: The fields by name.

        Returns:
            The block.

        Raises:
            TypeError: If a field is of another type.
        """
        block = cls(**payload)
        _check_types(block, str, "name")
        _check_types(block, _NUMBER, "before", "after")
        return block


@dataclass(frozen=True)
class PruningResult:
    """The result of `prune`. Printing it shows a table of the layers.

    Args:
        method: The name of the method, such as "sparsegpt".
        settings: The settings of the method.
        layers: One entry for each pruned layer, in the order of the model.
        skipped: Layers that stayed dense, each with the reason.
        tokens: The largest number of calibration tokens that a layer received; None without calibration data.
        seconds: The time that pruning took, without the evaluation.
        peak_memory: The peak memory of the process so far, in bytes; None if the system does not report it.
        scores: Metric -> (before, after) of the evaluation; empty without one.
        rows: The number of labelled rows, or of predicted tokens.
        unit: What `rows` counts: "labelled rows" or "tokens".
        permuted: The share of the scores of reordered layers that masks keep, before and after; None without `permute`.
        reconstruct: The settings of reconstruction; empty without it.
        blocks: One entry for each block that was reconstructed. The layers' errors are those before.
    """

    method: str
    settings: dict[str, Any]
    layers: tuple[PrunedLayer, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    tokens: int | None = None
    seconds: float = 0.0
    peak_memory: int | None = None
    scores: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    rows: int = 0
    unit: str = "labelled rows"
    permuted: tuple[float, float] | None = None
    reconstruct: dict[str, Any] = field(default_factory=dict)
    blocks: tuple[ReconstructedBlock, ...] = ()

    @property
    def density(self) -> float:
        """Return the fraction of the entries of all layers that are not zero."""
        sizes = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        nonzeros = sum(layer.density * size for layer, size in zip(self.layers, sizes, strict=True))
        return nonzeros / max(sum(sizes), 1)

    @property
    def error(self) -> float | None:
        """Return the mean error of the layers, or None without calibration data."""
        return _mean([layer.error for layer in self.layers])

    @property
    def magnitude_error(self) -> float | None:
        """Return the mean error that pruning by magnitude would have caused, or None without calibration data."""
        return _mean([layer.magnitude_error for layer in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dict that JSON can hold."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, folder: str | Path) -> None:
        """Write the result into a model's directory, where `nxm report` reads it.

        Args:
            folder: The directory; it must exist.
        """
        write_text(Path(folder) / RESULT_FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> "PruningResult":
        """Read the result from a model's directory.

        Args:
            folder: A directory that `nxm prune` or `nxm convert` wrote.

        Returns:
            The result.

        Raises:
            ValueError: If the file is damaged, or was written by a newer version.
        """
        path = Path(folder) / RESULT_FILE
        try:
            payload = json.loads(path.read_text(encoding="utf-8"))
            layers = tuple(map(PrunedLayer.from_dict, payload.pop("layers")))
            if payload.pop("format") > FORMAT:
                raise ValueError("it was written by a newer nxm_hf")
            blocks = tuple(map(ReconstructedBlock.from_dict, payload.pop("blocks", ())))
            if payload.get("permuted") is not None:
                before, after = map(float, payload["permuted"])
                payload["permuted"] = before, after
            result = cls(layers=layers, blocks=blocks, **payload)
            _check_types(result, str, "method")
            _check_types(result, dict, "settings", "skipped", "scores", "reconstruct")
            _check_types(result, _NUMBER, "seconds", "rows")
            _check_types(result, (*_NUMBER, type(None)), "tokens", "peak_memory")
            for score in (score for before, after in result.scores.values() for score in (before, after)):
                if not isinstance(score, float | None):
                    raise TypeError(f"a score is {str(score)[:60]}")
            return result
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"{path} cannot be read ({reason}). Prune the model again.") from error

    @property
    def summary(self) -> dict[str, str]:
        """Return the figures of all layers together as text, by name."""
        figures = {"density": f"{self.density:.4f}"}
        if self.error is not None:
            figures["mean error"] = f"{_four_digits(self.error)} (magnitude {_four_digits(self.magnitude_error)})"
            figures["calibration"] = f"{self.tokens} tokens"
        if self.permuted:
            figures["kept by masks"] = " -> ".join(map(_four_digits, self.permuted)) + " by permutation"
        if self.blocks:
            before, after = (_mean([getattr(b, when) for b in self.blocks]) for when in ("before", "after"))
            figures["error of blocks"] = f"{_four_digits(before)} -> {_four_digits(after)} by reconstruction"
        figures["time"] = f"{self.seconds:.1f} s"
        if self.peak_memory is not None:
            figures["peak memory"] = f"{self.peak_memory / 2**30:.2f} GiB"
        return figures

    @property
    def score_summary(self) -> dict[str, str]:
        """Return each metric before and after as text, by name."""
        return {
            name: f"{_four_digits(before)} -> {_four_digits(after)} on {self.rows} {self.unit}"
            for name, (before, after) in self.scores.items()
        }

    def __str__(self) -> str:
        head = ("layer", "role", "shape", "pattern", "density", "energy", "magnitude", "error", "")
        figures = [f"{len(self.layers)} layers by {self.method}", *map(" ".join, self.summary.items())]
        parts = [table(head, [layer.row() for layer in self.layers])]
        if self.blocks:
            rows = [(block.name, _four_digits(block.before), _four_digits(block.after)) for block in self.blocks]
            parts.append("\n" + table(("block", "error pruned", "reconstructed"), rows) + "\n")
        parts.append(", ".join(figures))
        if self.error is not None:
            parts.append("Errors are of the layer's outputs, squared, as a share of the outputs; lower is better.")
        if self.tokens is None:
            parts.append("There was no calibration data; with it, other methods than magnitude lose less.")
        parts += map(" ".join, self.score_summary.items())
        parts += [f"Left dense: {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(parts)


def record_pruning(config: NxMConfig, result: PruningResult) -> SparsityRecord:
    """Describe a model that `prune` made. Its config keeps the masks when it is trained further.

    Args:
        config: The config that the model was pruned with.
        result: The result, with a row for each layer.

    Returns:
        The record to save with the model.
    """
    pruning: dict[str, Any] = {"method": result.method, "settings": result.settings, "tokens": result.tokens}
    if result.permuted:
        pruning["permuted"] = True
    if result.reconstruct:
        pruning["reconstruct"] = result.reconstruct
    return SparsityRecord(config, {layer.name: layer.pattern for layer in result.layers}, result.density, pruning)


def _check_types(holder: object, kind: type | tuple[type, ...], *names: str) -> None:
    """Raise unless fields that were read from a file are of a type."""
    for name in names:
        value = getattr(holder, name)
        if not isinstance(value, kind) or (isinstance(value, int) and abs(value) > _LARGEST):
            raise TypeError(f"{name} is {str(value)[:60]}")


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes, or None if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _four_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
