"""Blocks: where the repeated blocks of a Transformer are, and which modules hold a matrix."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile and of activation checkpointing
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def find_blocks(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The elements of every stack, outermost stacks only."""
    stacked = _is_stack(module)
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}".removeprefix(".")
        if stacked:
            yield path, child
        else:
            yield from find_blocks(child, path)


def _is_stack(module: nn.Module) -> bool:
    """Whether `module` is a list of blocks of one kind with two or more matrices each."""
    elements = [unwrap(block) for block in module.children()]
    return (
        isinstance(module, nn.ModuleList)
        and _are_of_one_kind(elements)
        and not isinstance(elements[0], nn.ModuleList)  # Funnel has lists of lists
        and not hasattr(elements[0], "save_pretrained")  # whole models, each with stacks of its own
        and all(sum(map(is_linear, block.modules())) >= 2 for block in elements)
    )


def _are_of_one_kind(elements: Sequence[nn.Module]) -> bool:
    """Whether they share a class, or at least a base of their own, as layers with and without attention do (Jamba)."""
    kinds = {type(block) for block in elements}
    shared = set.intersection(*(set(kind.__mro__) for kind in kinds)) if kinds else set()
    return len(kinds) == 1 or not shared <= {*nn.Sequential.__mro__}


def is_linear(module: nn.Module) -> bool:
    """Whether it multiplies by one matrix: a Linear, a Conv1D, or a convolution of width one (SqueezeBERT)."""
    if isinstance(module, nn.Conv1d):
        return module.kernel_size == (1,)
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is the Conv1D of Transformers (GPT-2): a Linear whose weight is [in, out]. Known by name alone."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside compilation, checkpointing and data parallelism."""
    for name, child in module.named_children():
        if name in _WRAPPERS or isinstance(module, _PARALLEL):
            return unwrap(child)
    return module


def plain_name(name: str) -> str:
    """A module's name without those wrappers.

    >>> plain_name("_orig_mod.layer.0._checkpoint_wrapped_module.query")
    'layer.0.query'
    """
    return ".".join(part for part in name.split(".") if part not in ("", *_WRAPPERS))


@contextmanager
def eval_no_grad(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout, and so without chance."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
