"""A backend: compiled kernels for one type of device, each used only after it has passed its self-test here."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from nxm_hf.solvers import self_test
from nxm_hf.solvers.base import FLOATS, NMPattern, Operation, PatternLike, is_nm, large_enough
from nxm_hf.solvers.nm_sort import by_sorting
from nxm_hf.solvers.self_test import Counts, Run

GROUP_SIZES = (2, 4, 8, 16, 32)  # groups of these m fill whole vectors of a CPU, and whole blocks of Triton


class Kernels(Protocol):
    """The functions of a module that launches the kernels of a backend.

    Args:
        OPERATIONS: The names of the operations that it has kernels for.
    """

    OPERATIONS: frozenset[str]

    def run(self, operation: str, n: int, m: int, *tensors: Tensor, factor: float = 0.0) -> int:
        """Do an operation to contiguous tensors. Return its count, or -1 where an input holds a NaN.

        Args:
            operation: The name of the operation.
            n: Kept entries of a group.
            m: Entries of a group.
            *tensors: The inputs of the operation.
            factor: The number of the operation, if it has one.
        """

    def fill_masks(self, n: int, m: int, scores: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """Write the N:M masks of a list of scores.

        Args:
            n: Kept entries of a group.
            m: Entries of a group.
            scores: Scores of any strides.
            masks: The tensors to write into.
        """


K = TypeVar("K", bound=Kernels, covariant=True)


def _mask_in_torch(pattern: NMPattern, scores: Tensor, out: Tensor) -> int:
    out.copy_(by_sorting(scores, pattern))
    return 0


MASK = Operation("mask", _mask_in_torch, ("float", "mask"), refuses_nan=False)


class Backend(Generic[K]):
    """Compiled kernels for one type of device.

    Nothing is imported or compiled before the first tensor comes that is large enough. Where the compiler is missing,
    or a kernel fails its self-test, `supports` returns False and torch does the work.

    Args:
        device_type: The type of the tensors' device, as in `torch.device.type`.
        compiler: The package that compiles the kernels, for messages.
        load: Import the module that launches the kernels. It may raise anything.
        groups_at_once: A kernel does so many groups in one step, and handles no rest.
    """

    def __init__(self, device_type: str, compiler: str, load: Callable[[], K], groups_at_once: int = 1):
        self.device_type = device_type
        self.compiler = compiler
        self.groups_at_once = groups_at_once
        self.group_sizes = GROUP_SIZES
        self.self_tests: dict[str, bool] = {}  # outcomes so far, by the name of the kernel
        self._load = load

    @cached_property
    def _kernels(self) -> K | None:
        try:
            return self._load()
        except Exception:  # it is not installed, or does not fit torch, Python or the driver
            return None

    @property
    def is_loaded(self) -> bool:
        """Return True if the kernels have been imported already. Imports nothing."""
        return vars(self).get("_kernels") is not None

    @property
    def kernels(self) -> K:
        """Return the module that launches the kernels.

        Raises:
            ImportError: It cannot be imported here.
        """
        if self._kernels is None:
            raise ImportError(
                f"The kernels for {self.device_type} tensors need {self.compiler}, which cannot be imported."
            )
        return self._kernels

    def unavailable(self) -> str | None:
        """Return why these kernels cannot be used here, or None if they can. Compiles nothing."""
        if self.device_type == "cuda" and not torch.cuda.is_available():
            return "torch sees no GPU"
        return f"{self.compiler} cannot be imported" if self._kernels is None else None

    def works(self) -> bool:
        """Return whether the kernel of 2:4 masks, which is used most, can be compiled here and is right."""
        return self.unavailable() is None and self._operation_passes(
            MASK, Counts(2, 4), torch.float32, torch.device(self.device_type)
        )

    def available(self, tensor: Tensor) -> bool:
        """Return whether kernels can be used for a tensor, by its device and size.

        Args:
            tensor: A tensor of any dtype.
        """
        return tensor.device.type == self.device_type and large_enough(tensor) and self._kernels is not None

    def passes(self, kernel: str, test: Callable[..., bool], *arguments: Any, warns: bool = True) -> bool:
        """Return whether a kernel passes its self-test. It runs once in a process, and logs a warning if it fails.

        Args:
            kernel: The name of the kernel, which tells it apart from all others of this backend.
            test: One of the functions of `self_test`.
            *arguments: What `test` is called with.
            warns: Whether a failure is logged.
        """
        if kernel not in self.self_tests:
            self.self_tests[kernel] = self_test.passes(kernel, partial(test, *arguments), warns)
        return self.self_tests[kernel]

    def supports(self, operation: Operation, pattern: PatternLike, *tensors: Tensor) -> bool:
        """Return whether there is a kernel for an operation on these tensors, and it works.

        Args:
            operation: The operation.
            pattern: The pattern; there are kernels for plain N:M only.
            *tensors: The inputs, all of one size. The first has the dtype and the device that count.
        """
        first = tensors[0]
        return (
            is_nm(pattern)
            and pattern.m in self.group_sizes
            and first.numel() % (self.groups_at_once * pattern.m) == 0
            and first.dtype in (FLOATS[:1] if operation.in_place else FLOATS)
            and self.available(first)
            and operation.name in self.kernels.OPERATIONS
            # Solvers make their scores contiguous.
            and (operation is MASK or all(tensor.is_contiguous() for tensor in tensors))
            and self._operation_passes(operation, pattern, first.dtype, first.device)
        )

    def _operation_passes(
        self, operation: Operation, pattern: NMPattern, dtype: torch.dtype, device: torch.device
    ) -> bool:
        name = f"{operation.name} of {pattern.n}:{pattern.m} in {dtype} on {device}"
        run = self.runner(operation, pattern)
        return self.passes(name, self_test.operation_is_right, run, operation, pattern, dtype, device)

    def runner(self, operation: Operation, pattern: NMPattern) -> Run:
        """Return the kernel of an operation, to be called with its inputs, and with `factor=` if it has one.

        Args:
            operation: An operation that is supported.
            pattern: The pattern of the kernel.
        """
        return partial(self.kernels.run, operation.name, pattern.n, pattern.m)

    def supports_mask(self, scores: Tensor, pattern: NMPattern) -> bool:
        """Return whether there is a kernel for the N:M mask of scores, of any strides, and it works.

        Args:
            scores: The scores.
            pattern: The pattern of the mask.
        """
        return self.supports(MASK, pattern, scores)

    def fill_masks(self, scores: Sequence[Tensor], pattern: NMPattern, masks: Sequence[Tensor]) -> None:
        """Write the N:M masks of a list of scores; see `Solver`.

        Args:
            scores: Scores that are supported.
            pattern: The pattern of all masks.
            masks: The tensors to write into.
        """
        self.kernels.fill_masks(pattern.n, pattern.m, scores, masks)
