"""The state that AdamW keeps of one weight with a frozen mask: moments of kept entries alone, and dense for readers.

torch's optimizers store the state of a weight in a dict, which other code reads: for checkpoints, for scores, for logs.
So `KeptState` is a dict too. Whoever reads a moment of it gets the dense one, and may write to it.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from nxm_hf.solvers.kept_entries import KeptEntries

MOMENTS = ("exp_avg", "exp_avg_sq")
Packed = tuple[KeptEntries, Tensor, Tensor]  # the kept entries of a weight, and both moments of them
LONGEST_WAIT = 1024  # the most steps in which moments stay dense after they were read
_NEVER_READ = (0, 0)  # steps to wait, and the last wait


class KeptState(dict[str, Any]):
    """The state of one weight whose moments are packed until other code reads them.

    Any access but to "step" unpacks both moments for good: they are dense in this dict from then on. A copy and a
    pickle are plain dicts with dense moments.

    Args:
        step: The number of steps done.
        kept: The kept entries of the weight.
        mask: The mask that `kept` was made of.
        packed: Both moments, packed.
    """

    def __init__(self, step: Tensor, kept: KeptEntries, mask: Tensor, packed: tuple[Tensor, Tensor]):
        super().__init__(step=step, **dict.fromkeys(MOMENTS))
        self._packed: Packed | None = (kept, *packed)
        self._remember(mask)

    @classmethod
    def of(cls, state: dict[str, Any], mask: Tensor) -> "KeptState | None":
        """Pack the moments of a state. Return None if moments of pruned entries are not +0.0, or if it holds others.

        Args:
            state: The state of a weight, with dense moments; empty before the first step.
            mask: True where an entry of the weight is kept.
        """
        kept = KeptEntries.of(mask)
        if not state:  # before the first step, as torch's fused AdamW begins
            step = torch.zeros((), dtype=torch.float32, device=mask.device)
            return cls(step, kept, mask, (kept.zeros(torch.float32), kept.zeros(torch.float32)))
        if state.keys() != {"step", *MOMENTS}:
            return None
        packed = []
        for name in MOMENTS:
            packed.append(kept.pack(state[name]))
            if torch.count_nonzero(_bits(packed[-1])) != torch.count_nonzero(_bits(state[name])):
                return None
        return cls(state["step"], kept, mask, (packed[0], packed[1]))

    @property
    def step(self) -> Tensor:
        """Return the number of steps done."""
        step: Tensor = super().__getitem__("step")
        return step

    def packed_by(self, mask: Tensor) -> Packed | None:
        """Return the kept entries and both packed moments, or None if they are dense or packed by another mask.

        Args:
            mask: True where an entry is kept.
        """
        if self._packed is None:
            return None
        if self._source() is not _owner(mask) or self._version != mask._version or mask.shape != self._packed[0].shape:
            if not self._packed[0].has_mask(mask):
                return None
            self._remember(mask)
        return self._packed

    @property
    def is_packed(self) -> bool:
        """Return True if nothing has read the moments since they were packed."""
        return self._packed is not None

    @property
    def packed(self) -> Packed | None:
        """Return the kept entries and both packed moments, or None if they are dense."""
        return self._packed

    @property
    def nbytes(self) -> int:
        """Return the bytes of both moments and of the places of kept entries. Nothing is unpacked."""
        if self._packed is None:
            return sum(super(KeptState, self).__getitem__(name).nbytes for name in MOMENTS)
        kept, *packed = self._packed
        return sum(each.nbytes for each in (kept.bits, kept.offsets, *packed))

    def unpack(self) -> None:
        """Make the moments dense, with +0.0 for pruned entries."""
        if self._packed is not None:
            kept, *packed = self._packed
            self._packed = None
            for name, moment in zip(MOMENTS, packed, strict=True):
                super().__setitem__(name, kept.unpack(moment))

    def _remember(self, mask: Tensor) -> None:
        """Note which tensor the mask is, and its version, so that it need not be compared at each step."""
        self._source, self._version = ref(_owner(mask)), mask._version

    def __getitem__(self, key: str) -> Any:
        if key != "step":
            self.unpack()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default if there is none. Moments are unpacked.

        Args:
            key: The name of the value.
            default: What to return if there is none.
        """
        return self[key] if key in self else default

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class Packer:
    """Packs moments before a step, unless other code reads them over and over.

    Each read, and each mask whose pruned moments are not zero, leaves the moments dense for twice as many steps as the
    last one did.
    """

    def __init__(self) -> None:
        self._waits: dict[int, tuple[int, int]] = {}  # the id of a parameter -> steps to wait, and the last wait

    def packed(self, states: dict[Tensor, Any], parameter: Tensor, mask: Tensor) -> Packed | None:
        """Return the kept entries of a parameter and its packed moments, or None if its moments are dense.

        Args:
            states: The states of all parameters; this one's may be replaced.
            parameter: The parameter. Its state may be empty, and stays so if None is returned.
            mask: True where an entry is kept.
        """
        state = states[parameter]
        if isinstance(state, KeptState):
            if packed := state.packed_by(mask):
                return packed
            if not state.is_packed:
                self._wait_longer(parameter)
            state = states[parameter] = dict(state)
        left, last = self._waits.get(id(parameter), _NEVER_READ)
        if left:
            self._waits[id(parameter)] = left - 1, last
            return None
        kept = KeptState.of(state, mask)
        if kept is None:
            self._wait_longer(parameter)
            return None
        states[parameter] = kept
        return kept.packed_by(mask)

    def begin_anew(self, states: dict[Tensor, Any], parameter: Tensor) -> None:
        """Forget how often the moments of a parameter were read.

        Args:
            states: The states of all parameters.
            parameter: The parameter, which has a state.
        """
        states[parameter] = dict(states[parameter])
        self._waits.pop(id(parameter), None)

    def _wait_longer(self, parameter: Tensor) -> None:
        _, last = self._waits.get(id(parameter), _NEVER_READ)
        wait = min(max(2 * last, 1), LONGEST_WAIT)
        self._waits[id(parameter)] = wait, wait


def _unpacking(name: str) -> Callable[..., Any]:
    """Return a method of dict that unpacks the moments first."""
    method = getattr(dict, name)

    @wraps(method)
    def call(state: KeptState, *args: Any, **kwargs: Any) -> Any:
        state.unpack()
        return method(state, *args, **kwargs)

    return call


for _name in (
    *("__setitem__", "__delitem__", "__iter__", "__reversed__", "__eq__", "__ne__", "__or__", "__ror__", "__ior__"),
    *("__repr__", "keys", "values", "items", "pop", "popitem", "setdefault", "update", "clear", "copy"),
):
    setattr(KeptState, _name, _unpacking(_name))


def _owner(mask: Tensor) -> Tensor:
    """Return the tensor that a view was made of, or the tensor itself."""
    return mask if mask._base is None else mask._base


def _bits(moment: Tensor) -> Tensor:
    return moment.view(torch.int32)
