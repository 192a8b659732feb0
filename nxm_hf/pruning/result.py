"""The outcome of pruning without training: what was done to each layer and what it costs in its outputs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nxm_hf.config import NxMConfig, SparsityRecord
from nxm_hf.text import table

OUTCOME_FILE = "nxm_pruning.json"
FORMAT = 1


@dataclass(frozen=True)
class PrunedLayer:
    """One layer. Errors are the squared error of its outputs over the calibration tokens, as a share of the outputs."""

    name: str
    role: str
    shape: tuple[int, int]
    pattern: str
    density: float
    kept_energy: float  # the share of the sum of squares of the weight before that its kept entries hold
    magnitude_error: float | None  # what pruning by magnitude alone would have cost
    error: float | None
    tokens: int | None
    note: str = ""

    def row(self) -> tuple[str, ...]:
        """The layer's line of the table."""
        numbers = (self.density, self.kept_energy, self.magnitude_error, self.error)
        size = f"{self.shape[0]}x{self.shape[1]}"
        return self.name, self.role, size, self.pattern, *map(_number, numbers), self.note


@dataclass(frozen=True)
class PruningResult:
    """All layers; prints as a table."""

    method: str
    settings: dict[str, Any]
    layers: tuple[PrunedLayer, ...]
    skipped: dict[str, str] = field(default_factory=dict)  # layers left dense, and why
    tokens: int | None = None
    seconds: float = 0.0
    peak_memory: int | None = None  # of the process so far, in bytes
    scores: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)  # of the task, before and after
    rows: int = 0  # that they were taken on

    @property
    def density(self) -> float:
        """The fraction of the entries of all layers that is not zero."""
        sizes = [x.shape[0] * x.shape[1] for x in self.layers]
        return sum(x.density * size for x, size in zip(self.layers, sizes, strict=True)) / max(sum(sizes), 1)

    @property
    def error(self) -> float | None:
        """The mean of the layers' errors; None without calibration."""
        return _mean([x.error for x in self.layers])

    @property
    def magnitude_error(self) -> float | None:
        """The mean of what magnitude alone would have cost."""
        return _mean([x.magnitude_error for x in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's words."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, folder: str | Path) -> None:
        """Write it beside a model, where `nxm report` finds it."""
        (Path(folder) / OUTCOME_FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> "PruningResult":
        """What was saved beside a model."""
        path = Path(folder) / OUTCOME_FILE
        try:
            words = json.loads(path.read_text(encoding="utf-8"))
            rows = [PrunedLayer(**{**row, "shape": tuple(row["shape"])}) for row in words.pop("layers")]
            if words.pop("format") > FORMAT:
                raise ValueError("it was written by a newer nxm_hf")
            return cls(layers=tuple(rows), **words)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read ({error!r}). Prune the model again.") from error

    @property
    def facts(self) -> dict[str, str]:
        """What is said of all layers together, by name."""
        found = {"density": f"{self.density:.4f}"}
        if self.error is not None:
            found["mean error"] = f"{_number(self.error)} (magnitude {_number(self.magnitude_error)})"
            found["calibration"] = f"{self.tokens} tokens"
        found["time"] = f"{self.seconds:.1f} s"
        if self.peak_memory is not None:
            found["peak memory"] = f"{self.peak_memory / 2**30:.2f} GiB"
        return found

    @property
    def judged(self) -> dict[str, str]:
        """What is said of the task, by metric."""
        return {
            name: f"{_number(before)} -> {_number(after)} on {self.rows} labelled rows"
            for name, (before, after) in self.scores.items()
        }

    def __str__(self) -> str:
        head = ("layer", "role", "shape", "pattern", "density", "energy", "magnitude", "error", "")
        facts = [f"{len(self.layers)} layers by {self.method}", *map(" ".join, self.facts.items())]
        parts = [table(head, [layer.row() for layer in self.layers]), ", ".join(facts)]
        if self.error is not None:
            parts.append("Errors are of the layer's outputs, squared, as a share of the outputs; lower is better.")
        parts += map(" ".join, self.judged.items())
        parts += [f"Left dense: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(parts)


def made_by(outcome: PruningResult, config: NxMConfig) -> SparsityRecord:
    """Describe a model that `prune` made. Its config keeps the masks when it is trained further.

    Args:
        outcome: What was done to each layer.
        config: What was asked for.

    Returns:
        The record to save with the model.
    """
    pruning = {"method": outcome.method, "settings": outcome.settings, "tokens": outcome.tokens}
    return SparsityRecord(config, {layer.name: layer.pattern for layer in outcome.layers}, outcome.density, pruning)


def peak_memory() -> int | None:
    """The most memory that this process has had, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
