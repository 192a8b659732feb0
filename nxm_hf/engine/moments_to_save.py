"""Packed moments in a state dict that is about to be saved: each is made dense only when `torch.save` writes it.

`torch.save` first writes what a state dict holds, and then one storage after the other. One that is not on a CPU is
copied there just before it is written. So a moment here has a storage on no device, whose copy is made by unpacking.
The file has the bytes that it would have with dense moments, and at most one of them is in memory.
"""

import io
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nxm_hf.engine.adamw import AdamW
from nxm_hf.engine.kept_state import MOMENTS, KeptState
from nxm_hf.engine.optimizer_state import unwrapped
from nxm_hf.solvers.kept_entries import KeptEntries


class MomentToSave:
    """Stand for a dense moment in a state dict, for `torch.save` alone.

    Args:
        kept: The kept entries of the weight.
        packed: The moment, packed.
    """

    def __init__(self, kept: KeptEntries, packed: Tensor):
        self._kept, self._packed = kept, packed

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Reduce to what a dense tensor reduces to, with a storage that is made later."""
        shape = self._kept.shape
        storage = _StorageToSave(shape.numel() * self._packed.itemsize, device="meta")
        storage.kept, storage.packed = self._kept, self._packed
        typed: Any = torch.storage.TypedStorage(wrap_storage=storage, dtype=self._packed.dtype, _internal=True)
        typed._fake_device = "cpu"  # where it is loaded to
        stride = torch.empty(shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (typed, 0, tuple(shape), stride, False, OrderedDict())


class _StorageToSave(torch.UntypedStorage):
    """A storage without memory. `torch.save` calls `cpu` of it when it writes its bytes."""

    kept: KeptEntries
    packed: Tensor

    def cpu(self) -> torch.UntypedStorage:
        """Return the storage of the dense moment."""
        return self.kept.unpack(self.packed).untyped_storage()


@contextmanager
def moments_to_save(optimizer: Optimizer | None) -> Iterator[None]:
    """Let `state_dict` of `nxm_hf.AdamW` return packed moments as `MomentToSave` in the body, if torch can save them.

    Args:
        optimizer: The optimizer, with or without accelerate's wrapper. Nothing happens to others.
    """
    optimizer = None if optimizer is None else unwrapped(optimizer)
    if not (isinstance(optimizer, AdamW) and _can_be_saved()):
        yield
        return
    optimizer.unpacks_for_readers = False
    handle = optimizer.register_state_dict_post_hook(_replace_packed)
    try:
        yield
    finally:
        handle.remove()
        optimizer.unpacks_for_readers = True


def _replace_packed(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with other dicts in the place of states that are packed."""
    if not isinstance(state_dict.get("state"), dict):  # another hook has changed its form
        return state_dict
    return {**state_dict, "state": {key: _to_save(state) for key, state in state_dict["state"].items()}}


def _to_save(state: Any) -> Any:
    packed = state.packed if isinstance(state, KeptState) else None
    if not isinstance(state, KeptState) or packed is None:
        return state
    kept, *moments = packed
    return {"step": state.step, **{name: MomentToSave(kept, each) for name, each in zip(MOMENTS, moments, strict=True)}}


@cache
def _can_be_saved() -> bool:
    """Return whether this version of torch writes the same bytes for packed moments as for dense ones."""
    mask = torch.eye(2, dtype=torch.bool, device="cpu")
    state = KeptState.of({name: torch.where(mask, 1.5, 0.0) for name in ("step", *MOMENTS)}, mask)
    files = io.BytesIO(), io.BytesIO()
    try:
        assert state is not None  # pruned entries are zero
        torch.save({0: _to_save(state), 1: mask}, files[0])
        torch.save({0: dict(state), 1: mask}, files[1])
    except Exception:  # another version of torch takes other steps
        return False
    return files[0].getvalue() == files[1].getvalue()
