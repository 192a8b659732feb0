"""Calls of modules that FSDP2 has sharded: hooks around a module's forward gather its weights and free them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from nxm_hf.layers.modules import without_wrappers


@contextmanager
def replaced_calls(blocks: Sequence[nn.Module], replace: Callable[[int, Callable], Callable]) -> Iterator[None]:
    """Replace the computation of blocks while the context is open.

    For a plain block this replaces its forward. For a block that FSDP2 has sharded it replaces the whole call, so that
    weights are gathered only if the block is computed.

    Args:
        blocks: The blocks.
        replace: Return a replacement, given the number of the block and the original function.
    """
    names = ["_compiled_call_impl" if isinstance(block, FSDPModule) else "forward" for block in blocks]
    own = [vars(block).get(name) for block, name in zip(blocks, names, strict=True)]  # set on the instance
    try:
        for number, (block, name) in enumerate(zip(blocks, names, strict=True)):
            setattr(block, name, replace(number, block.forward if name == "forward" else block._call_impl))
        yield
    finally:
        for block, name, value in zip(blocks, names, own, strict=True):
            vars(block).pop(name, None)
            if value is not None:
                setattr(block, name, value)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a model without torch.compile, while the context is open. FSDP2's hooks on the wrapper are still called.

    Args:
        model: The model. Without a wrapper nothing is done.
    """
    inside = without_wrappers(model)
    if inside is model:
        yield
        return
    compiled, model.forward = model.forward, inside.__call__
    try:
        yield
    finally:
        model.forward = compiled


@contextmanager
def completed_calls(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let FSDP2 complete its part of a call when an exception breaks it off, and raise the exception afterwards.

    Otherwise the next forward pass of the training would not wait for the optimizer's step.

    Args:
        model: The model. Without FSDP2 nothing is done.
        blocks: Its blocks. Their own calls are complete.
    """
    inside = {id(module) for block in blocks for module in block.modules()}
    around = [module for module in model.modules() if isinstance(module, FSDPModule) and id(module) not in inside]
    raised: list[BaseException] = []

    def completed(forward: Callable) -> Callable:
        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return forward(*args, **kwargs)
            except BaseException as reason:
                raised.append(reason)
                return None  # returned to the hooks of FSDP2; the caller cannot use it

        return call

    own_forwards = [vars(module).get("forward") for module in around]
    try:
        for module in around:
            module.forward = completed(module.forward)
        yield
    except BaseException:
        if not raised:
            raise
    finally:
        for module, own in zip(around, own_forwards, strict=True):
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own
    if raised:
        try:
            raise raised[0]
        finally:
            raised.clear()  # its traceback refers to this frame, and so to all statistics of the pass
