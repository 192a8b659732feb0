"""The interface of a one-shot pruner: weight, statistics of its inputs and pattern in, pruned weight out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from nxm_hf.patterns import NM, Pattern, Transposable
from nxm_hf.solvers.weight_ops import keep

T = TypeVar("T")


@dataclass
class Inputs:
    """Statistics of the inputs x of one layer over the calibration tokens.

    Args:
        gram: The sum of x x^T over the tokens, [in, in].
        mean: The mean of x, [in].
        count: The number of tokens.
        sample: Some of the inputs, [tokens, in], for methods with `needs_sample`.
    """

    gram: Tensor
    mean: Tensor
    count: int
    sample: Tensor | None = None
    _shared: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return a value computed from these statistics, once for all layers that share them.

        Args:
            key: The name of the value.
            compute: Computes it.
        """
        if key not in self._shared:
            self._shared[key] = compute()
        return cast(T, self._shared[key])

    @property
    def norms(self) -> Tensor:
        """Return the norm of each input over the tokens, [in]."""
        return self.gram.diagonal().clamp(min=0).sqrt()


@dataclass
class PrunedWeight:
    """The result of pruning one layer.

    Args:
        weight: The pruned weight, [out, in]. It holds the pattern, and its zeros are +0.0.
        bias: The new bias, or None if the layer has none or keeps its own.
        mask: True where a weight is kept, [out, in].
        note: A remark for the user, for example that calibration saw no input; "" without one.
    """

    weight: Tensor
    bias: Tensor | None
    mask: Tensor
    note: str = ""


class OneShot(ABC):
    """A method that prunes one layer without training. Its dataclass fields are its settings.

    Subclasses implement `prune`; users call the object. The call checks its arguments, computes in fp32 or fp64, and
    returns the dtype of the layer. A weight that holds the pattern already is returned unchanged. A layer whose
    inputs are all zero, or were never seen, is pruned by magnitude.

    >>> from nxm_hf import patterns, pruners
    >>> method = pruners.Wanda()
    >>> x = torch.tensor([[1.0, 2.0, 0.5, 4.0]])
    >>> inputs = pruners.Inputs(gram=x.T @ x, mean=x.mean(0), count=1)
    >>> method(torch.tensor([[0.5, -0.4, 0.3, 0.2]]), None, inputs, patterns.parse("2:4")).weight
    tensor([[ 0.0000, -0.4000,  0.0000,  0.2000]])
    """

    needs_inputs: ClassVar[bool] = True
    needs_gram: ClassVar[bool] = True  # False if the norms of the inputs are enough

    @property
    def needs_sample(self) -> bool:
        """Return whether the method needs `Inputs.sample`."""
        return False

    @abstractmethod
    def prune(self, weight: Tensor, bias: Tensor | None, inputs: Inputs, pattern: Pattern) -> PrunedWeight:
        """Prune a weight that does not hold the pattern yet.

        Args:
            weight: The dense weight, [out, in], fp32 or fp64.
            bias: The bias in the same dtype, or None.
            inputs: Statistics of the layer's inputs; finite, and not all zero.
            pattern: Where zeros may stand.

        Returns:
            The pruned weight, in the dtype of `weight`. No argument is modified.
        """

    @torch.no_grad()
    def __call__(self, weight: Tensor, bias: Tensor | None, inputs: Inputs | None, pattern: Pattern) -> PrunedWeight:
        """Prune one layer.

        Args:
            weight: The dense weight, [out, in], in any floating-point dtype.
            bias: The layer's bias, or None.
            inputs: Statistics of the layer's inputs, or None for a method without `needs_inputs`.
            pattern: Where zeros may stand.

        Returns:
            The pruned weight, in the dtype of `weight`. No argument is modified.

        Raises:
            ValueError: If the pattern does not fit the shape, or if the inputs are missing, of another shape or not
                finite.
        """
        weight = weight.detach()
        pattern.check(weight.shape)
        if not self.needs_inputs or pattern.violations(weight) == 0:
            return prune_by_magnitude(weight, pattern)
        inputs = self._checked(weight, inputs)
        if not (inputs.count and inputs.gram.any()):
            return prune_by_magnitude(weight, pattern, "calibration saw no input other than zero; pruned by magnitude")
        full = torch.promote_types(weight.dtype, torch.float32)
        pruned = self.prune(weight.to(full), None if bias is None else bias.detach().to(full), inputs, pattern)
        return _in_layer_dtype(weight, bias, pruned)

    def _checked(self, weight: Tensor, inputs: Inputs | None) -> Inputs:
        """Return the inputs, or raise `ValueError` if the method cannot compute with them."""
        name, width = type(self).__name__.lower(), weight.shape[-1]
        if inputs is None or (self.needs_sample and inputs.sample is None):
            what = "Inputs" if inputs is None else "Inputs with a sample"
            raise ValueError(f"{name} needs statistics of the layer's inputs; got none. Pass {what}, from calibration.")
        if tuple(inputs.gram.shape) != (width, width) or tuple(inputs.mean.shape) != (width,):
            raise ValueError(
                f"A weight of shape {tuple(weight.shape)} needs a Gram matrix of shape {(width, width)} and a mean of "
                f"{width}; got {tuple(inputs.gram.shape)} and {tuple(inputs.mean.shape)}. Calibrate with this layer."
            )
        for what, tensor in {"weight": weight, "Gram matrix": inputs.gram, "mean": inputs.mean}.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"The {what} holds {int((~tensor.isfinite()).sum())} NaN or infinities; {name} needs finite "
                    "numbers. Calibrate in fp32 or bf16: fp16 overflows beyond 65504."
                )
        return inputs


def group_width(pattern: Pattern) -> int:
    """Return the number of columns of a group of the pattern, or 0 for a pattern without groups.

    Args:
        pattern: Any pattern; N:M and transposable N:M have groups.

    Returns:
        M, or 0.
    """
    return pattern.m if isinstance(pattern, (NM, Transposable)) else 0


def prune_by_magnitude(weight: Tensor, pattern: Pattern, note: str = "") -> PrunedWeight:
    """Keep the largest entries of a weight.

    Args:
        weight: The dense weight, [out, in].
        pattern: Where zeros may stand.
        note: A remark for the user.

    Returns:
        The pruned weight; kept entries are unchanged.
    """
    return apply_mask(weight, pattern.largest(weight), note)


def apply_mask(weight: Tensor, mask: Tensor, note: str = "") -> PrunedWeight:
    """Set the entries of a weight outside the mask to +0.0, in a copy.

    Args:
        weight: The weight, [out, in].
        mask: True where an entry is kept, [out, in].
        note: A remark for the user.

    Returns:
        The masked weight without a new bias.
    """
    kept = weight.clone(memory_format=torch.contiguous_format)
    keep(kept, mask)
    return PrunedWeight(kept, None, mask, note)


def _in_layer_dtype(weight: Tensor, bias: Tensor | None, pruned: PrunedWeight) -> PrunedWeight:
    """Return the result in the dtype of the layer; if that overflows, only the mask is used and weights stay."""
    stored = apply_mask(pruned.weight.to(weight.dtype), pruned.mask, pruned.note)
    if pruned.bias is not None and bias is not None:
        stored.bias = pruned.bias.to(bias.dtype)
    if stored.weight.isfinite().all() and (stored.bias is None or stored.bias.isfinite().all()):
        return stored
    return apply_mask(weight, pruned.mask, f"fitted weights overflow {weight.dtype}; kept weights stay as they were")


def output_error(
    weight: Tensor,
    pruned: Tensor,
    inputs: Inputs,
    bias: Tensor | None = None,
    pruned_bias: Tensor | None = None,
) -> float:
    """Return the squared error of a pruned layer's outputs, as a share of the dense layer's outputs W X.

        || (W - W') X + (b - b') 1^T ||_F^2 / || W X ||_F^2

    Args:
        weight: The dense weight W, [out, in].
        pruned: The pruned weight W', [out, in].
        inputs: Statistics of the inputs X.
        bias: The dense layer's bias b; needed only with `pruned_bias`.
        pruned_bias: The pruned layer's bias b', or None if the bias did not change.

    Returns:
        The relative error; infinity if all outputs of the dense layer are zero and the pruned layer's are not.

    >>> inputs = Inputs(gram=torch.eye(4), mean=torch.zeros(4), count=4)
    >>> output_error(torch.ones(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]), inputs)
    0.5
    """
    gram = inputs.gram
    full = torch.promote_types(gram.dtype, torch.float32)
    gram, dense = gram.to(full), weight.detach().to(full)
    lost = dense - pruned.detach().to(full)
    squared, total = ((lost @ gram) * lost).sum(), float(((dense @ gram) * dense).sum())
    if bias is not None and pruned_bias is not None:
        shift = (bias.detach() - pruned_bias.detach()).to(full)
        squared += inputs.count * (shift @ shift + 2 * shift @ (lost @ inputs.mean.to(full)))
    error = max(float(squared), 0.0)
    return error / total if total > 0 else (0.0 if error == 0 else float("inf"))
