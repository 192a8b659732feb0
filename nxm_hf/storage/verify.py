"""Verification: does every layer hold its pattern, with true zeros? Of a model in memory or in a directory."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nxm_hf.config.config import CONFIG_FILE, STAMP, NxMConfig
from nxm_hf.layers.find import Layer, find_layers
from nxm_hf.layers.plan import Target
from nxm_hf.patterns import Pattern, parse
from nxm_hf.storage.model_files import layer_weights, skeleton
from nxm_hf.storage.model_record import read_stamp
from nxm_hf.text import table


@dataclass(frozen=True)
class VerifiedLayer:
    """What was found in one layer."""

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
        return self.shape[0] * self.shape[1]

    @property
    def density(self) -> float:
        """The fraction of entries that are not zero."""
        return self.nonzeros / self.numel

    @property
    def problems(self) -> list[str]:
        """Each way in which the layer breaks its promise, as a sentence."""
        found = (
            (self.violations, f"breaks {self.pattern} in {self.violations} places"),
            (self.negative_zeros, f"holds {self.negative_zeros} zeros that are -0.0"),
            (self.not_finite, f"holds {self.not_finite} entries that are NaN"),
        )
        return [f"{self.name} {what}." for count, what in found if count]


@dataclass(frozen=True)
class Verification:
    """What was found in all layers; prints as a table."""

    layers: tuple[VerifiedLayer, ...]
    absent: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every layer holds its pattern with true +0.0 zeros."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """Every problem, as a sentence."""
        found = [problem for layer in self.layers for problem in layer.problems]
        found += [f"{name} is recorded as sparse, and the model has no such layer." for name in self.absent]
        return found or ([] if self.layers else ["No layer was found to verify."])

    @property
    def density(self) -> float:
        """The fraction of all their entries that are not zero."""
        return sum(layer.nonzeros for layer in self.layers) / max(sum(layer.numel for layer in self.layers), 1)

    def raise_for_problems(self) -> None:
        """A ValueError that lists the problems, if there are any."""
        if not self.ok:
            shown = "\n".join(f"  {problem}" for problem in self.problems[:12])
            raise ValueError(
                f"{len(self.problems)} problems in the weights to ship; nothing was written:\n{shown}\n"
                "Were they trained on without nxm_hf? NxMTrainer(..., sparsity=...) prunes them again."
            )

    def __str__(self) -> str:
        rows = [
            (x.name, x.role, f"{x.shape[0]}x{x.shape[1]}", str(x.pattern), f"{x.density:.4f}", _verdict(x))
            for x in self.layers
        ]
        text = table(("layer", "role", "shape", "pattern", "density", ""), rows)
        verdict = "ok" if self.ok else f"{len(self.problems)} problems"
        tail = "".join(f"\n{problem}" for problem in self.problems)
        return f"{text}\n{len(self.layers)} layers, density {self.density:.4f}: {verdict}{tail}"


def verify(model_or_dir: nn.Module | str | Path, pattern: str | Pattern | None = None) -> Verification:
    """Check a model, or a saved model's directory, layer by layer against its pattern.

    The layers are those that the model's record names (`nxm_config.json`, or the stamp in its config); a model
    without a record needs `pattern`, and all layers that nxm_hf would prune by default are checked against it.
    """
    pattern = None if pattern is None else parse(pattern)
    if isinstance(model_or_dir, nn.Module):
        layers, absent = _recorded(model_or_dir, _record_of(model_or_dir), pattern)
        return Verification(tuple(_look(layer, held, layer.weight) for layer, held in layers), absent)
    model = skeleton(model_or_dir)
    layers, absent = _recorded(model, _record_in(model_or_dir, pattern), pattern)
    weights = layer_weights(model_or_dir, model, [layer for layer, _ in layers])
    return Verification(tuple(_look(*pair, weight) for pair, weight in zip(layers, weights, strict=True)), absent)


def verify_targets(targets: Iterable[Target]) -> Verification:
    """Check the weights of these targets as they are in memory."""
    return Verification(tuple(_look(target.layer, target.pattern, target.layer.weight) for target in targets))


@torch.no_grad()
def _look(layer: Layer, pattern: Pattern, weight: Tensor) -> VerifiedLayer:
    matrix = layer.matrix(weight.detach())
    return VerifiedLayer(
        name=layer.name,
        role=layer.role,
        shape=tuple(matrix.shape),
        pattern=pattern,
        nonzeros=int(torch.count_nonzero(matrix)),
        violations=pattern.violations(matrix),
        negative_zeros=int(torch.count_nonzero((matrix == 0) & torch.signbit(matrix))),
        not_finite=int(torch.count_nonzero(torch.isnan(matrix))),
    )


def _recorded(
    model: nn.Module, record: dict[str, str] | None, pattern: Pattern | None
) -> tuple[list[tuple[Layer, Pattern]], tuple[str, ...]]:
    """The layers to look at, each with its pattern, and the names on record that the model does not have."""
    if record is None:
        if pattern is None:
            raise ValueError(
                f'This {type(model).__name__} has no record of being sparse; say what it should hold: pattern="2:4".'
            )
        return [(layer, pattern) for layer in find_layers(model)], ()
    layers = {layer.name: layer for layer in find_layers(model)}
    there = [(layers[name], pattern or parse(text)) for name, text in record.items() if name in layers]
    return there, tuple(name for name in record if name not in layers)


def _record_of(model: nn.Module) -> dict[str, str] | None:
    stamp = read_stamp(model)
    return stamp.layers if stamp else None


def _record_in(folder: str | Path, pattern: Pattern | None) -> dict[str, str] | None:
    try:
        return NxMConfig.from_pretrained(folder).layers
    except FileNotFoundError:
        if pattern is None:
            raise FileNotFoundError(
                f"{folder} holds no {CONFIG_FILE}, and no {STAMP!r} in its config.json. "
                "Say what it should hold: --pattern 2:4, or verify(dir, pattern='2:4')."
            ) from None
        return None


def _verdict(layer: VerifiedLayer) -> str:
    return "" if not layer.problems else "; ".join(problem.removeprefix(f"{layer.name} ") for problem in layer.problems)
