"""Experts: parameters that hold one matrix of every expert of a block, as in Mixtral, Qwen-MoE and gpt-oss."""

from collections.abc import Iterator

from torch import Tensor, nn

_PRODUCTS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


def expert_stacks(module: nn.Module) -> Iterator[str]:
    """Yield the names of a module's parameters that stack a matrix of every expert.

    Transformers marks such a module with the layout of its matrices. A module without this mark is skipped, because
    [experts, out, in] and [experts, in, out] cannot be distinguished by their shapes.

    Args:
        module: Any module.
    """
    if isinstance(getattr(module, "is_transposed", None), bool):
        for name, parameter in module.named_parameters(recurse=False):
            if name in _PRODUCTS and parameter.dim() == 3:
                yield name


def as_matrix(module: nn.Module, stack: Tensor) -> Tensor:
    """Return a view of the matrices of all experts as one, whose last dimension runs along their inputs.

    Args:
        module: The module of the experts.
        stack: A tensor with the shape of one of its parameters.

    Returns:
        [experts * out, in], or [out, experts * in] if the module stores [experts, in, out].
    """
    matrix = stack.view(-1, stack.shape[-1])
    return matrix.t() if module.is_transposed else matrix


def shape_of_stack(module: nn.Module, stack: Tensor) -> tuple[int, int]:
    """Return the shape of the matrix of all experts.

    Args:
        module: The module of the experts.
        stack: A tensor with the shape of one of its parameters.
    """
    rows, columns = shape_of_one(module, stack)
    return (rows, len(stack) * columns) if module.is_transposed else (len(stack) * rows, columns)


def shape_of_one(module: nn.Module, stack: Tensor) -> tuple[int, int]:
    """Return the shape [out, in] of the matrix of one expert.

    Args:
        module: The module of the experts.
        stack: A tensor with the shape of one of its parameters.
    """
    rows, columns = stack.shape[1:]
    return (columns, rows) if module.is_transposed else (rows, columns)
