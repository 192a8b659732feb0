"""What a one-shot method is: from a weight, what calibration saw of its inputs and a pattern, to a pruned weight."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nxm_hf.patterns import NM, Pattern, Transposable


@dataclass
class Inputs:
    """What calibration saw of the inputs x of one layer."""

    gram: Tensor  # [in, in]: the sum of x x^T over the tokens
    mean: Tensor  # [in]: the mean of x
    count: int  # how many tokens there were
    sample: Tensor | None = None  # [tokens, in]: some of the inputs, for a method that `needs_sample`

    @property
    def norms(self) -> Tensor:
        """The norm of each input over the tokens: [in]."""
        return self.gram.diagonal().clamp(min=0).sqrt()


@dataclass
class Pruned:
    """What a method makes of one layer."""

    weight: Tensor  # [out, in]: holds the pattern, its zeros are +0.0
    bias: Tensor | None  # the new bias; None where there is none, or where it stays as it was
    mask: Tensor  # [out, in]: True where kept
    note: str = ""  # what the user should know: that calibration had nothing to say, for example


class OneShot(ABC):
    """A way to prune one layer without training; its fields are its settings.

    Called with a weight of shape [out, in], whose inputs the last dimension are. Nothing that it is given changes.
    Weights in half precision are worked on in fp32, and what comes back is stored as they were. A weight that already
    holds the pattern comes back unchanged; one whose inputs were never seen, or always zero, is pruned by magnitude.
    """

    needs_inputs: ClassVar[bool] = True

    @property
    def needs_sample(self) -> bool:
        """Whether `Inputs.sample` has to be there."""
        return False

    @abstractmethod
    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> Pruned:
        """Prune a weight of fp32 or fp64 that does not hold the pattern yet; inputs are finite and not all zero."""

    @torch.no_grad()
    def __call__(self, weight: Tensor, bias: Tensor | None, inputs: Inputs | None, pattern: Pattern) -> Pruned:
        """Prune one layer."""
        weight = weight.detach()
        pattern.check(weight.shape)
        if not self.needs_inputs or pattern.violations(weight) == 0:
            return by_magnitude(weight, pattern)
        self._check(weight, inputs)
        if not (inputs.count and inputs.gram.any()):
            return by_magnitude(weight, pattern, "calibration saw no input other than zero; pruned by magnitude")
        full = torch.promote_types(weight.dtype, torch.float32)
        found = self.prune(weight.to(full), None if bias is None else bias.detach().to(full), inputs, pattern)
        return _as_stored(weight, bias, found)

    def _check(self, weight: Tensor, inputs: Inputs | None) -> None:
        """Raise `ValueError` for what no number can be made of."""
        name, width = type(self).__name__.lower(), weight.shape[-1]
        if inputs is None or (self.needs_sample and inputs.sample is None):
            what = "Inputs" if inputs is None else "Inputs with a sample"
            raise ValueError(f"{name} looks at the inputs of a layer; got none. Pass {what}, from calibration.")
        if tuple(inputs.gram.shape) != (width, width) or tuple(inputs.mean.shape) != (width,):
            raise ValueError(
                f"A weight of shape {tuple(weight.shape)} needs a Gram matrix of shape {(width, width)} and a mean of "
                f"{width}; got {tuple(inputs.gram.shape)} and {tuple(inputs.mean.shape)}. Calibrate this very layer."
            )
        for what, tensor in {"weight": weight, "Gram matrix": inputs.gram, "mean": inputs.mean}.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"The {what} holds {int((~tensor.isfinite()).sum())} NaN or infinities; {name} needs numbers. "
                    "Calibrate in fp32 or bf16: fp16 overflows beyond 65504."
                )


def groups_of(pattern: Pattern) -> int:
    """How many columns a group of the pattern is wide; 0 where it has no groups."""
    return pattern.m if isinstance(pattern, (NM, Transposable)) else 0


def by_magnitude(weight: Tensor, pattern: Pattern, note: str = "") -> Pruned:
    """The weight with its largest entries kept."""
    return masked(weight, pattern.mask(weight.abs()), note)


def masked(weight: Tensor, mask: Tensor, note: str = "") -> Pruned:
    """The weight with all but the entries of the mask set to +0.0."""
    return Pruned(torch.where(mask, weight, 0).add_(0), None, mask, note)


def _as_stored(weight: Tensor, bias: Tensor | None, found: Pruned) -> Pruned:
    """What was found, in the precision of the layer; the kept weights as they were where it has no such numbers."""
    stored = masked(found.weight.to(weight.dtype), found.mask, found.note)
    stored.bias = None if found.bias is None else found.bias.to(bias.dtype)
    if stored.weight.isfinite().all() and (stored.bias is None or stored.bias.isfinite().all()):
        return stored
    return masked(weight, found.mask, f"fitted weights overflow {weight.dtype}; kept weights stay as they were")


def output_error(
    weight: Tensor,
    pruned: Tensor,
    inputs: Inputs,
    bias: Tensor | None = None,
    pruned_bias: Tensor | None = None,
) -> float:
    """The squared error of a pruned layer's outputs over the tokens, as a share of the dense layer's W X.

    || (W - W') X + (b - b') 1^T ||_F^2 / || W X ||_F^2. Give both biases where they differ.
    """
    gram = inputs.gram
    full = torch.promote_types(gram.dtype, torch.float32)
    gram, dense = gram.to(full), weight.detach().to(full)
    lost = dense - pruned.detach().to(full)
    error, whole = ((lost @ gram) * lost).sum(), ((dense @ gram) * dense).sum()
    if pruned_bias is not None:
        moved = (bias.detach() - pruned_bias.detach()).to(full)
        error += inputs.count * (moved @ moved + 2 * moved @ (lost @ inputs.mean.to(full)))
    error = max(float(error), 0.0)
    return error / float(whole) if whole > 0 else (0.0 if error == 0 else float("inf"))
