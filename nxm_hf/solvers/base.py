"""Base of all solvers: the members of a pattern that they read, the `Solver` record, and the use of kernels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar, Generic, NoReturn, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor

MIN_NUMEL = 2**16  # smaller tensors are solved by torch: it is quick enough, and nothing has to be compiled

_kernels_allowed: ContextVar[bool] = ContextVar("kernels_allowed", default=True)


class PatternLike(Protocol):
    """The member that every pattern has: its kind, by which `SOLVERS` lists solvers.

    `nxm_hf.patterns` is built on this package, so solvers cannot import its classes. The protocols below name the
    members that each kind of solver reads.
    """

    kind: ClassVar[str]


class NMPattern(PatternLike, Protocol):
    """A pattern that keeps `n` of every `m`: plain N:M and transposable N:M."""

    @property
    def n(self) -> int: ...

    @property
    def m(self) -> int: ...


class SizedPattern(PatternLike, Protocol):
    """A pattern with a method that returns how many weights it keeps."""

    def kept(self, shape: Sequence[int]) -> int: ...


class BlockPattern(PatternLike, Protocol):
    """A pattern that keeps whole blocks."""

    def kept_blocks(self, shape: Sequence[int]) -> int: ...

    def tiles(self, weight: Tensor) -> Tensor: ...


class MaskPattern(SizedPattern, Protocol):
    """A pattern that can compute its own mask, as every `nxm_hf.patterns.Pattern` can."""

    def mask(self, scores: Tensor) -> Tensor: ...


class SharedPattern(PatternLike, Protocol):
    """A pattern of a part of a weight, whose masks several processes solve together."""

    def nearest(self, weight: Tensor) -> Tensor: ...


P = TypeVar("P", bound=PatternLike)


def is_nm(pattern: PatternLike) -> TypeGuard[NMPattern]:
    """Return whether a pattern is plain N:M.

    Args:
        pattern: A pattern of any kind.
    """
    return pattern.kind == "nm"


def is_transposable(pattern: PatternLike) -> TypeGuard[NMPattern]:
    """Return whether a pattern is transposable N:M.

    Args:
        pattern: A pattern of any kind.
    """
    return pattern.kind == "transposable"


def is_shared(pattern: PatternLike) -> TypeGuard[SharedPattern]:
    """Return whether a pattern is that of a part of a weight, whose masks several processes solve together.

    Args:
        pattern: A pattern of any kind.
    """
    return pattern.kind == "shared"


def supports_all(scores: Tensor, pattern: PatternLike) -> bool:
    """Return True: the `supports` of a solver that handles all scores.

    Args:
        scores: Makes no difference.
        pattern: Makes no difference.
    """
    return True


@dataclass(frozen=True)
class Solver(Generic[P]):
    """A solver as `SOLVERS` lists it. Called as `solver(scores, pattern)`, it returns a new mask.

    Args:
        function: Return the mask of one tensor of scores.
        supports: Return, from scores and pattern, whether this solver can and should be used. It reads device, dtype,
            shape and what is installed, never values.
        list_function: `list_function(scores, pattern, masks)` writes the masks of a whole list at once. All its scores
            are supported and not empty, and its masks are contiguous. Without it, tensors are solved one by one.
    """

    function: Callable[[Tensor, P], Tensor]
    supports: Callable[[Tensor, P], bool] = supports_all
    list_function: Callable[[Sequence[Tensor], P, Sequence[Tensor]], None] | None = None

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, scores: Tensor, pattern: P) -> Tensor:
        return self.function(scores, pattern)

    def fill(self, scores: Sequence[Tensor], pattern: P, masks: Sequence[Tensor]) -> None:
        """Write the masks of a list of scores.

        Args:
            scores: Tensors that this solver supports, none of them empty.
            pattern: The pattern of all masks.
            masks: Contiguous bool tensors with the shapes and devices of `scores`.
        """
        if self.list_function is not None:
            self.list_function(scores, pattern, masks)
            return
        for each, mask in zip(scores, masks, strict=True):
            mask.copy_(self.function(each, pattern))


def solve_alone(
    list_function: Callable[[Sequence[Tensor], P, Sequence[Tensor]], None], scores: Tensor, pattern: P
) -> Tensor:
    """Return the mask of one tensor, computed by the function for lists.

    Args:
        list_function: See `Solver`.
        scores: One tensor of scores.
        pattern: The pattern of the mask.
    """
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    list_function([scores], pattern, [mask])
    return mask


def mask_buffers(scores: Sequence[Tensor], out: Sequence[Tensor] | None) -> list[Tensor]:
    """Return the tensors to write masks into: `out`, or new ones.

    Args:
        scores: The scores whose masks will be computed.
        out: Contiguous bool tensors with the shapes and devices of `scores`, or None.

    Raises:
        ValueError: `out` has another length, or one of its tensors does not fit.
    """
    if out is None:
        return [torch.empty(each.shape, dtype=torch.bool, device=each.device) for each in scores]
    if len(out) != len(scores):
        raise ValueError(f"There are {len(scores)} tensors of scores and {len(out)} in out; it needs one for each.")
    for each, mask in zip(scores, out, strict=True):
        if (mask.dtype, mask.shape, mask.device) != (torch.bool, each.shape, each.device) or not mask.is_contiguous():
            raise ValueError(
                f"out holds a {mask.dtype} of shape {tuple(mask.shape)} on {mask.device} for scores of shape "
                f"{tuple(each.shape)} on {each.device}. It must be contiguous, of dtype bool, with their shape "
                "and device. Write torch.empty(scores.shape, dtype=torch.bool, device=scores.device), or omit out=."
            )
    return list(out)


@contextmanager
def reference_only() -> Iterator[None]:
    """Compute everything in plain torch within this context, without compiled kernels.

    It holds for the current thread. Use it to compare kernels with torch.

    Example:
        >>> from nxm_hf.solvers import choose
        >>> from nxm_hf.patterns import NM
        >>> with reference_only():
        ...     choose(torch.ones(1024, 1024), NM(2, 4)).__name__
        'by_counting'
    """
    token = _kernels_allowed.set(False)
    try:
        yield
    finally:
        _kernels_allowed.reset(token)


def large_enough(tensor: Tensor) -> bool:
    """Return whether compiled kernels are allowed here, and a tensor has enough entries to use them.

    Args:
        tensor: Any tensor; only its size is read.
    """
    return _kernels_allowed.get() and tensor.numel() >= MIN_NUMEL


@dataclass(frozen=True)
class Operation:
    """An operation on whole N:M weights that backends have a kernel for, with its form in torch.

    Kernels and `reference` are called with the tensors of `inputs`, and with `factor=` where there are `factors`. They
    return a count, and -1 where `refuses_nan` and an input holds a NaN.

    Args:
        name: The name by which kernels know the operation.
        reference: `reference(pattern, *tensors)` does the operation in torch.
        inputs: "float" or "mask" for each tensor. All have the same number of entries.
        in_place: Whether float inputs are overwritten. Such kernels exist for fp32 only.
        refuses_nan: Whether the kernel returns -1 for a NaN in its inputs.
        finite: Whether infinite inputs are excluded, because they could meet in a difference or a product with 0.
        factors: Numbers for the operation, with which kernels are tested; none if it takes no number.
    """

    name: str
    reference: Callable[..., int]
    inputs: tuple[str, ...]
    in_place: bool = False
    refuses_nan: bool = True
    finite: bool = False
    factors: tuple[float, ...] = ()


def refuse_nan(scores: Tensor) -> None:
    """Raise an error if scores hold a NaN, because a NaN cannot be ordered.

    Args:
        scores: Scores, or a weight.

    Raises:
        ValueError: There is a NaN.
    """
    # A sum is NaN if any score is, and is much cheaper than `isnan`.
    if scores.is_floating_point() and scores.sum().isnan() and (count := int(scores.isnan().sum())):
        raise_nan(f"Scores hold {count} NaN of {scores.numel()}")


def raise_nan(problem: str) -> NoReturn:
    """Raise the error about a NaN.

    Args:
        problem: What holds a NaN.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"{problem}; a mask needs numbers. "
        "Look for the step that made them: a learning rate too high, or an fp16 overflow."
    )


def integer_view(tensor: Tensor) -> Tensor:
    """Return a view of the bits of a tensor, as integers of the same width.

    Args:
        tensor: A tensor of any dtype of 1, 2, 4 or 8 bytes.
    """
    return tensor.view(_INTEGERS[tensor.dtype.itemsize])


_INTEGERS: dict[int, torch.dtype] = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# The floats that kernels exist for, each with the bits of its infinity. The bits of a NaN, without sign, are larger.
INFINITY_BITS: dict[torch.dtype, int] = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
FLOATS = tuple(INFINITY_BITS)
