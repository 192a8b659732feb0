"""Modules: the blocks of a Transformer, the modules that hold a matrix, the model in a wrapper, evaluation mode."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile and of activation checkpointing
_ADAPTED = ("base_layer", "original_module")  # of PEFT: the layer in an adapter layer, and beside a copy of it
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def find_blocks(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of every block: the elements of the outermost lists of blocks.

    Args:
        module: The model or a part of it.
        name: The name of that part, as a prefix of the names that are yielded.

    Example:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        >>> [name for name, block in find_blocks(model)]
        ['layers.0', 'layers.1']
    """
    is_block_list = _is_block_list(module)
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}".removeprefix(".")
        if is_block_list:
            yield path, child
        else:
            yield from find_blocks(child, path)


def _is_block_list(module: nn.Module) -> bool:
    """Return True for a ModuleList of blocks of the same class with two or more matrices each."""
    elements = [without_wrappers(block) for block in module.children()]
    return (
        isinstance(module, nn.ModuleList)
        and _share_a_class(elements)
        and not isinstance(elements[0], nn.ModuleList)  # Funnel has lists of lists
        and not hasattr(elements[0], "save_pretrained")  # whole models, each with lists of blocks of its own
        and all(sum(map(is_linear, block.modules())) >= 2 for block in elements)
    )


def _share_a_class(elements: Sequence[nn.Module]) -> bool:
    """Return True if the elements have one class, or a common base class that PyTorch does not define.

    The second case is that of Jamba, whose layers with and without attention have different classes.
    """
    classes = {type(block) for block in elements}
    shared = set.intersection(*(set(cls.__mro__) for cls in classes)) if classes else set()
    return len(classes) == 1 or not shared <= {*nn.Sequential.__mro__}


def is_linear(module: nn.Module) -> bool:
    """Return True if the module multiplies by one matrix.

    Args:
        module: Any module. A Linear, a Conv1D of Transformers and a convolution of width one (SqueezeBERT) match.
    """
    if isinstance(module, nn.Conv1d):
        return module.kernel_size == (1,)
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Return True for the Conv1D of Transformers (GPT-2): a Linear whose weight is stored as [in, out].

    Args:
        module: Any module. It is recognized by the name of its class, so that copies in remote code match too.
    """
    return _is_conv1d(cast(Any, type(module)))


@lru_cache(maxsize=1024)
def _is_conv1d(kind: Hashable) -> bool:
    return any(cls.__name__ == "Conv1D" for cls in cast(type, kind).__mro__)


def without_wrappers(module: nn.Module) -> nn.Module:
    """Return the module inside compilation, activation checkpointing and data parallelism.

    Args:
        module: A module in any number of these wrappers, or in none.
    """
    check_is_model(module)
    for name, child in module.named_children():
        if name in _WRAPPERS or isinstance(module, _PARALLEL):
            return without_wrappers(child)
    return module


def check_is_model(value: object) -> None:
    """Raise for anything but a model, and say what to write instead.

    Args:
        value: The user's value for a model.

    Raises:
        TypeError: If it is no `nn.Module`.
    """
    if isinstance(value, nn.Module):
        return
    kind = type(value).__name__
    if isinstance(value, (str, Path)):
        raise TypeError(f"A model is needed, and {str(value)!r} is a path. Load it with from_pretrained.")
    if isinstance(value, type):
        raise TypeError(
            f"A model is needed, and {value.__name__} is a class. Write {value.__name__}.from_pretrained(...)."
        )
    inside = next((name for name in ("model", "model_body") if isinstance(getattr(value, name, None), nn.Module)), None)
    if inside is not None:
        raise TypeError(f"A model is needed, and got a {kind}. Write its .{inside}.")
    raise TypeError(f"A model is needed, and got a {kind}. Load one with from_pretrained.")


def unwrap(module: nn.Module) -> nn.Module:
    """Return the model whose layers are named and recorded: without wrappers, and outside of its container.

    Args:
        module: A model in any number of wrappers, in a container such as a SentenceTransformer, in a PeftModel, or in
            none of them. The base model of a PeftModel keeps its adapter layers.
    """
    module = without_wrappers(module)
    if is_peft_model(module):
        return unwrap(cast(Any, module).get_base_model())
    inner = inner_models(module)
    return without_wrappers(inner[0][1]) if len(inner) == 1 else module


def inner_models(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the Transformers models in a container, each with its name.

    A container saves the models in it as they are, and is loaded by code of its own: it has `save_pretrained`, and no
    `from_pretrained`. Examples are SentenceTransformer and CrossEncoder.

    Args:
        module: Any module without wrappers. One that is no container has no inner models.
    """
    if not hasattr(module, "save_pretrained") or hasattr(module, "from_pretrained"):
        return []
    models: dict[int, tuple[str, nn.Module]] = {}  # by identity: parts of a container can share a model
    for name, child in _outermost_models(module, ""):
        models.setdefault(id(child), (name, child))
    return list(models.values())


def _outermost_models(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if hasattr(module, "from_pretrained") and hasattr(module, "config"):  # nn.Embedding has only the first
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _outermost_models(child, f"{name}.{child_name}".removeprefix("."))


def is_peft_model(module: nn.Module) -> bool:
    """Return True for the PeftModel of PEFT, which holds a base model and an adapter.

    Args:
        module: Any module without wrappers. It is recognized by what it offers, so that PEFT is not imported.
    """
    return hasattr(module, "peft_config") and hasattr(module, "get_base_model")


def has_adapter(module: nn.Module) -> bool:
    """Return True if PEFT has put an adapter on a model, which then saves the adapter alone.

    Args:
        module: A model in any number of wrappers, or in none.
    """
    module = without_wrappers(module)
    return is_peft_model(module) or bool(getattr(unwrap(module), "_hf_peft_config_loaded", False))


def plain_name(name: str) -> str:
    """Return the name that a module has without these wrappers, and without an adapter.

    Args:
        name: The name of the module in the wrapped model.

    Example:
        >>> plain_name("_orig_mod.layer.0._checkpoint_wrapped_module.query")
        'layer.0.query'
    """
    return ".".join(part for part in name.split(".") if part not in ("", *_WRAPPERS, *_ADAPTED))


@contextmanager
def eval_no_grad(model: nn.Module) -> Iterator[None]:
    """Run the body of a `with` in evaluation mode and without gradients, then restore the mode of each module.

    Args:
        model: The model, whose dropout is off in the body.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
