"""Layers: the matrices of a model that can be pruned, with their names and roles."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from nxm_hf.families import BY_MODEL_TYPE, GROUPS, ROLES, role_of, scope_of
from nxm_hf.layers.experts import as_matrix, expert_stacks, shape_of_one, shape_of_stack
from nxm_hf.layers.modules import find_blocks, is_linear, is_transposed, plain_name, unwrap
from nxm_hf.layers.selection import Selection
from nxm_hf.text import shortened

__all__ = ["GROUPS", "ROLES", "Layer", "find_layers", "left_dense", "stacked_weights"]

# Inside a block, but never pruned: adapters, the routers of experts, positions, and steps between two stages.
_NEVER = re.compile(
    r"(^|\.)(lora_\w+|modules_to_save|\w+_adapter_list|router|gate|shared_expert_gate|relative_attention_bias|continuous_position_bias_mlp"
    r"|\w*rel_pos\w*|downsample)(\.|$)"
)


@dataclass(frozen=True)
class Layer:
    """A matrix of a model that can be pruned, or the matrices of all experts of a block.

    Args:
        name: The name of its module in the model without wrappers; of experts, that of their parameter.
        role: One of `ROLES`, such as "query".
        module: The module that holds the matrix.
        scope: The part of the model that the role refers to. Layers of one scope work together.
        parameter: The name of the parameter in the module.
    """

    name: str
    role: str
    module: nn.Module
    scope: str
    parameter: str = "weight"

    @property
    def weight(self) -> nn.Parameter:
        """The parameter of the module. Sharding and loading can replace it, so it is looked up at each use."""
        return cast(nn.Parameter, getattr(self.module, self.parameter))

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the module, or None if it has none. The biases of experts are not part of the layer."""
        return None if self.holds_experts else cast(nn.Parameter | None, self.module.bias)

    @property
    def holds_experts(self) -> bool:
        """True if the layer holds one matrix of each expert, and False for any other."""
        return self.parameter != "weight"

    @property
    def key(self) -> str:
        """The name of the parameter in the state dict of the model without wrappers."""
        return self.name if self.holds_experts else f"{self.name}.weight"

    @property
    def module_name(self) -> str:
        """The name of the module in the model without wrappers."""
        return self.key.rpartition(".")[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of the matrix, regardless of how it is stored."""
        if self.holds_experts:  # DTensor cannot show a stack that is sharded unevenly as a matrix
            return shape_of_stack(self.module, self.weight)
        rows, columns = self.matrix(self.weight).shape
        return rows, columns

    @property
    def shape_of_one(self) -> tuple[int, int]:
        """The shape (out, in) that a pattern must fit: that of one expert, or of the matrix."""
        return shape_of_one(self.module, self.weight) if self.holds_experts else self.shape

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view of a tensor as a matrix [out, in].

        Args:
            tensor: A tensor with the shape of the weight, such as the weight itself, its gradient or its mask.

        Returns:
            The view. The matrices of experts stand in it one below the other, or side by side if they are stored
            transposed. Each row of an expert lies along its inputs.
        """
        if self.holds_experts:
            return as_matrix(self.module, tensor)
        if isinstance(self.module, nn.Conv1d):
            return tensor.squeeze(-1)
        return tensor.t() if is_transposed(self.module) else tensor


def find_layers(
    model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> list[Layer]:
    r"""Return the layers to prune, in the order of the model.

    An entry of `include` or `exclude` is one of:

    - a name or whole components of it: `"attention.self.query"`, `"encoder.layer.0"`;
    - a role: `"query"`; or a group of roles: `"ffn"`;
    - a regular expression that is in a name: `"re:layer\.[0-3]\."`. `NamePattern` says what it may hold.

    Args:
        model: The model, in wrappers or not.
        include: One or several entries that select layers. By default all matrices in the repeated blocks.
        exclude: One or several entries that select layers to leave out.

    Raises:
        ValueError: If the model has no layer to prune, an entry matches none, or all are left out.
        TypeError: If an entry is not a string.

    Example:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
        >>> [(layer.name, layer.role, layer.shape) for layer in find_layers(model, include="ffn")]
        [('layers.0.linear1', 'ffn_in', (16, 8)), ('layers.0.linear2', 'ffn_out', (8, 16))]
    """
    model = unwrap(model)
    layers = _prunable(model)
    if not layers:
        raise ValueError(_no_layers(model))
    if include is None and exclude is None:
        return layers
    roles = {layer.name: layer.role for layer in layers}
    selection = Selection(type(model).__name__, roles, _left_dense(model, layers))
    selected = set(roles) if include is None else selection.select("include", include)
    selected -= set() if exclude is None else selection.select("exclude", exclude)
    if not selected:
        raise ValueError(
            f"Nothing to prune in this {selection.model_class}: include={include!r} and exclude={exclude!r} leave "
            f"none of its {len(layers)} layers. {selection.describe_roles()}."
        )
    return [layer for layer in layers if layer.name in selected]


def left_dense(model: nn.Module) -> dict[str, str]:
    """Return the reason why each of the other matrices, stacks of matrices and embeddings is never pruned, by name.

    Args:
        model: The model, in wrappers or not.
    """
    model = unwrap(model)
    return _left_dense(model, _prunable(model))


def stacked_weights(model: nn.Module) -> dict[str, str]:
    """Return the reason why each parameter of the blocks that holds several matrices stays dense, by name.

    Args:
        model: The model, in wrappers or not. Models with experts have such parameters.
    """
    return {
        plain_name(f"{prefix}.{path}.{name}"): "it holds several matrices, of experts or of heads, in one parameter"
        for prefix, block in find_blocks(unwrap(model))
        for path, module in block.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
        and min(parameter.shape) > 1
        and not isinstance(module, nn.Conv1d)
        and name not in expert_stacks(module)
    }


def _prunable(model: nn.Module) -> list[Layer]:
    """Return each matrix in the blocks once, without those that are never pruned or shared with another module."""
    matrices = [
        (plain_name(f"{prefix}.{name}.{stack}"), module, stack or "weight")
        for prefix, block in find_blocks(model)
        for name, module in block.named_modules()
        for stack in (("",) if is_linear(module) else expert_stacks(module))
        if not _NEVER.search(plain_name(name))
    ]
    inside = {id(module) for _, module, _ in matrices}
    shared = {id(p) for m in model.modules() if id(m) not in inside for p in m.parameters(recurse=False)}
    types = _model_types(model)
    layers: dict[int, Layer] = {}  # by weight: ALBERT runs one layer many times
    for name, module, parameter in matrices:
        if (key := id(_own_weight(name, module, parameter))) not in shared:
            model_type = _model_type_of(name, types)
            role, scope = role_of(model_type, name), scope_of(model_type, name)
            layers.setdefault(key, Layer(name, role, module, scope, parameter))
    return list(layers.values())


def _own_weight(name: str, module: nn.Module, parameter: str) -> nn.Parameter:
    weight = dict(module.named_parameters(recurse=False)).get(parameter)
    if weight is None:
        raise ValueError(
            f"The weight of {name} is not a parameter of its own: a parametrization, weight_norm or a quantization "
            f"took its place. Remove that first, for example with `torch.nn.utils.parametrize.remove_parametrizations`."
        )
    return weight


def _model_types(model: nn.Module) -> dict[str, str]:
    """Return the model type of each module whose config has one with a family. The parts of CLIP have their own."""
    types: dict[str, str] = {}
    for name, module in model.named_modules():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if model_type in BY_MODEL_TYPE:
            types[plain_name(name)] = model_type
    return types


def _model_type_of(name: str, types: Mapping[str, str]) -> str | None:
    """Return the model type of the innermost module around a layer that has one."""
    around = f"{name}."
    while around:
        around = around.rpartition(".")[0]
        if around in types:
            return types[around]
    return None


def _left_dense(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Return the reason why each matrix, stack of matrices and embedding outside `layers` is never pruned, by name."""
    prunable = {id(layer.weight) for layer in layers}
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(plain_name(name))
    reasons = {}
    for name, module in model.named_modules():
        if (is_linear(module) or isinstance(module, nn.Embedding)) and id(module.weight) not in prunable:
            reasons[plain_name(name)] = _reason(plain_name(name), module, owners.get(id(module.weight), []))
    return reasons | stacked_weights(model)


def _reason(name: str, module: nn.Module, owners: Sequence[str]) -> str:
    if isinstance(module, nn.Embedding):
        return "it is an embedding"
    if len(owners) > 1:
        return f"its weight is tied to {next(owner for owner in owners if owner != name)}"
    if _NEVER.search(name):
        return "it is an adapter, a router, a table of positions or a step between stages"
    return "it stands outside the repeated blocks (poolers, heads and embeddings stay dense)"


def _no_layers(model: nn.Module) -> str:
    if any(hasattr(module, "weight_nxm_idx") for module in model.modules()):
        return (
            f"The layers of this {type(model).__name__} are packed, so they cannot be pruned or trained. Load it with "
            "from_pretrained(dir, quantization_config=nxm_hf.NxMPackedConfig(dequantize=True))."
        )
    names = shortened([plain_name(name) for name, module in model.named_modules() if is_linear(module)]) or "none"
    return (
        f"Nothing to prune in this {type(model).__name__}: no Linear or Conv1D of its own stands in a stack of "
        "blocks. Such a stack is an nn.ModuleList of blocks of one class, each with two or more of them. The Linear "
        f"layers are: {names}."
    )
