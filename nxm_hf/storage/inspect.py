"""Inspection: list the layers of a saved model, and the GPU kernels that could run each of them as 2:4."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.config import SparsityRecord
from nxm_hf.layers.find import Layer, find_layers, left_dense
from nxm_hf.layers.gpu_kernels import GPU_KERNELS, GPUKernel
from nxm_hf.patterns import NM
from nxm_hf.solvers import SOLVERS, cpu, gpu
from nxm_hf.storage.model_files import layer_weights, skeleton
from nxm_hf.storage.quantized import as_numbers
from nxm_hf.storage.replacing import finish_replacing
from nxm_hf.text import table

TWO_OF_FOUR = NM(2, 4)  # the only pattern that GPUs have kernels for


@dataclass(frozen=True)
class InspectedLayer:
    """Describe one layer of a saved model.

    Args:
        name: Name of the layer.
        role: Role of the layer, such as "query".
        shape: Shape of its matrix, [out, in].
        dtype: Type of its weight in the file.
        pattern: Recorded pattern, or "dense".
        density: Fraction of the entries that are not zero.
        obstacle: Reason why no kernel can run the layer, whatever its shape, or None.
    """

    name: str
    role: str
    shape: tuple[int, int]
    dtype: str
    pattern: str
    density: float
    obstacle: str | None

    def refusal(self, kernel: GPUKernel) -> str | None:
        """Return the reason why a kernel cannot run the layer.

        Args:
            kernel: The kernel.

        Returns:
            The reason, or None if it can.
        """
        if self.obstacle is None and not kernel.takes(self.shape):
            return f"{self.shape[0]}x{self.shape[1]}, which is no multiple"
        return self.obstacle

    def row(self) -> tuple[str, ...]:
        """Return the layer's row of the table."""
        marks = ["-" if self.refusal(kernel) else str(number) for number, kernel in enumerate(GPU_KERNELS, 1)]
        size = f"{self.shape[0]}x{self.shape[1]}"
        return self.name, self.role, size, self.dtype, self.pattern, f"{self.density:.4f}", " ".join(marks)


@dataclass(frozen=True)
class Inspection:
    """Describe a saved model. It prints as a table with explanations.

    Args:
        title: One line about the model.
        layers: Its layers that can be pruned.
        left_dense: Other matrices and embeddings: name -> why they are never pruned.
    """

    title: str
    layers: tuple[InspectedLayer, ...]
    left_dense: dict[str, str]

    @property
    def is_sparse(self) -> bool:
        """Return True if any layer is recorded as sparse."""
        return any(layer.pattern != "dense" for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as a dict that JSON can hold."""
        layers = [
            {
                **vars(layer),
                "gpu": [str(kernel) for kernel in GPU_KERNELS if layer.refusal(kernel) is None],
            }
            for layer in self.layers
        ]
        return {"title": self.title, "layers": layers, "left_dense": self.left_dense}

    def __str__(self) -> str:
        head = ("layer", "role", "shape", "dtype", "pattern", "density", "GPU")
        parts = [self.title, table(head, [layer.row() for layer in self.layers]), self._rest(), self._gpu(), _solvers()]
        return "\n\n".join(part for part in parts if part)

    def _rest(self) -> str:
        lines = [f"{name}: {why}" for name, why in self.left_dense.items()]
        return "\n  ".join(["Never pruned:", *lines]) if lines else ""

    def _gpu(self) -> str:
        once = "" if self.is_sparse else ", once they hold 2:4"
        lines = [
            f"GPU: the 2:4 kernels of torch.sparse that could run these layers{once}, by shape and pattern alone.",
            "The weight must also be on the GPU, contiguous and cast to the dtype: none of them runs 2:4 in float32.",
        ]
        for number, kernel in enumerate(GPU_KERNELS, 1):
            reasons = Counter(reason for layer in self.layers if (reason := layer.refusal(kernel)))
            fit = len(self.layers) - reasons.total()
            lines.append(f"  {number} {kernel}: {fit} of {len(self.layers)} layers")
            lines += [f"      not {reason}: {count} layers" for reason, count in reasons.items()]
        return "\n".join(lines)


def inspect(folder: str | Path) -> Inspection:
    """Inspect the model in a directory, sparse or dense. Weights are read one at a time.

    Args:
        folder: Directory of the model.

    Returns:
        The inspection; it prints as a table.

    Raises:
        FileNotFoundError: If the directory holds no model.
    """
    finish_replacing(folder)
    model, record = skeleton(folder), _record(folder)
    layers = find_layers(model)
    patterns = record.layers if record else {}
    weights = layer_weights(folder, model, layers)
    views = [_view(layer, weight, patterns) for layer, weight in zip(layers, weights, strict=True)]
    return Inspection(_title(folder, model, record), tuple(views), left_dense(model))


@torch.no_grad()
def _view(layer: Layer, weight: Tensor, patterns: dict[str, str]) -> InspectedLayer:
    matrix = layer.matrix(as_numbers(layer, weight))
    pattern = patterns.get(layer.name, "dense")
    return InspectedLayer(
        name=layer.name,
        role=layer.role,
        shape=(matrix.shape[0], matrix.shape[1]),
        dtype=str(weight.dtype).removeprefix("torch."),
        pattern=pattern,
        density=int(matrix.count_nonzero()) / max(matrix.numel(), 1),
        obstacle=_obstacle(layer, matrix, pattern),
    )


def _obstacle(layer: Layer, matrix: Tensor, pattern: str) -> str | None:
    if not isinstance(layer.module, nn.Linear):
        return f"{type(layer.module).__name__}, which would have to become a Linear first"
    if pattern != "dense" and (matrix.shape[1] % 4 or TWO_OF_FOUR.violations(matrix)):
        return f"{pattern}, which is not 2:4"
    return None


def _record(folder: str | Path) -> SparsityRecord | None:
    try:
        return SparsityRecord.from_pretrained(folder)
    except FileNotFoundError:
        return None


def _title(folder: str | Path, model: nn.Module, record: SparsityRecord | None) -> str:
    if record is None:
        return f"{type(model).__name__} in {folder}: no record of being sparse."
    payload = record.to_dict()
    made = f"recipe {payload['recipe']}, pattern {payload['pattern']}, made with nxm_hf {payload['nxm_version']}"
    return f"{type(model).__name__} in {folder}: {made}."


def _solvers() -> str:
    missing = {cpu: not cpu.BACKEND.works(), gpu: gpu.BACKEND.unavailable() is not None}
    absent = [solver for tier, is_missing in missing.items() if is_missing for solver in tier.SOLVERS.values()]

    def named(solvers: Sequence) -> str:
        first, *others = (solver.__name__ for solver in solvers if solver not in absent)
        return first + (f" (or {', '.join(others)})" if others else "")

    lines = ["Solvers in use: " + "; ".join(f"{kind}: {named(solvers)}" for kind, solvers in SOLVERS.items()) + "."]
    if missing[cpu]:
        lines.append("Several times faster ones for CPUs need numba: pip install 'nxm-hf[fast]'.")
    reason = gpu.BACKEND.unavailable()
    lines.append(f"Kernels for GPUs are not in use: {reason}." if reason else "On a GPU, kernels of Triton.")
    return " ".join(lines)
