"""Layers: which matrices of a model are pruned, what each is called and what it does there."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nxm_hf.families import BY_MODEL_TYPE, GROUPS, ROLES, role_of, scope_of
from nxm_hf.layers.modules import find_blocks, is_linear, is_transposed, plain_name, unwrap
from nxm_hf.layers.selection import Selection
from nxm_hf.text import shortened

__all__ = ["GROUPS", "ROLES", "Layer", "find_layers", "left_dense"]

# Inside a block and yet never pruned: adapters, the routers of experts, positions, and what joins two stages.
_NEVER = re.compile(
    r"(^|\.)(lora_\w+|\w+_adapter_list|router|gate|shared_expert_gate|relative_attention_bias|continuous_position_bias_mlp"
    r"|\w*rel_pos\w*|downsample)(\.|$)"
)


@dataclass(frozen=True)
class Layer:
    """A matrix of the model that can be pruned. `name` is its module's name in the plain model, without wrappers.

    `scope` is the part of the model that it has its role in: layers of one scope work together.
    """

    name: str
    role: str
    module: nn.Module
    scope: str

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, looked up at each use: sharding and loading may put another one in its place."""
        return self.module.weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix, whatever way it is stored."""
        return tuple(self.matrix(self.weight).shape)

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of `tensor`, which has the weight's shape, as [out, in]: the input dimension stands last."""
        if isinstance(self.module, nn.Conv1d):
            return tensor.squeeze(-1)
        return tensor.t() if is_transposed(self.module) else tensor


def find_layers(
    model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> list[Layer]:
    """The layers to prune, in the model's order: those of the repeated blocks, then `include`, then not `exclude`.

    Both take one or several of: a name or whole components of it (`"attention.self.query"`, `"encoder.layer.0"`),
    a role (`"query"`), a group (`"ffn"`), a pattern for `re.search` (`"re:layer\\.[0-3]\\."`).

    >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
    >>> [(layer.name, layer.role, layer.shape) for layer in find_layers(model, include="ffn")]
    [('layers.0.linear1', 'ffn_in', (16, 8)), ('layers.0.linear2', 'ffn_out', (8, 16))]
    """
    model = unwrap(model)
    layers = _prunable(model)
    if not layers:
        raise ValueError(_nothing(model))
    choices = Selection(type(model).__name__, {layer.name: layer.role for layer in layers}, _refused(model, layers))
    chosen = set(choices.roles) if include is None else choices.names("include", include)
    chosen -= set() if exclude is None else choices.names("exclude", exclude)
    if not chosen:
        raise ValueError(
            f"Nothing to prune in this {choices.model}: include={include!r} and exclude={exclude!r} leave "
            f"none of its {len(layers)} layers. {choices.present()}."
        )
    return [layer for layer in layers if layer.name in chosen]


def left_dense(model: nn.Module) -> dict[str, str]:
    """Every matrix, stack of matrices and embedding that is never pruned, and why."""
    model = unwrap(model)
    return _refused(model, _prunable(model))


def stacked_weights(model: nn.Module) -> dict[str, str]:
    """Every parameter of the blocks that holds several matrices, as those of experts do, and why it stays dense."""
    return {
        plain_name(f"{prefix}.{path}.{name}"): "it holds several matrices, of experts or of heads, in one parameter"
        for prefix, block in find_blocks(unwrap(model))
        for path, module in block.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and len(parameter) > 1 and not isinstance(module, nn.Conv1d)
    }


def _prunable(model: nn.Module) -> list[Layer]:
    """Every matrix in the blocks once, but for the never-pruned and those shared with something else."""
    found = [
        (plain_name(f"{prefix}.{name}"), module)
        for prefix, block in find_blocks(model)
        for name, module in block.named_modules()
        if is_linear(module) and not _NEVER.search(plain_name(name))
    ]
    inside = {id(module) for _, module in found}
    shared = {id(p) for m in model.modules() if id(m) not in inside for p in m.parameters(recurse=False)}
    types = _model_types(model)
    layers: dict[int, Layer] = {}  # by weight: ALBERT runs one layer many times
    for name, module in found:
        if (key := id(_weight(name, module))) not in shared:
            family = _model_type(name, types)
            layers.setdefault(key, Layer(name, role_of(family, name), module, scope_of(family, name)))
    return list(layers.values())


def _weight(name: str, module: nn.Module) -> nn.Parameter:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is None:
        raise ValueError(
            f"The weight of {name} is not a parameter of its own: a parametrization, weight_norm or a quantization "
            f"took its place. Remove that first, for example with `torch.nn.utils.parametrize.remove_parametrizations`."
        )
    return weight


def _model_types(model: nn.Module) -> dict[str, str]:
    """Module name -> model type, where its config gives one of the catalogue. Parts may have their own (CLIP)."""
    types = {}
    for name, module in model.named_modules():
        try:
            types[plain_name(name)] = module.config.model_type
        except AttributeError:
            continue
    return {name: model_type for name, model_type in types.items() if model_type in BY_MODEL_TYPE}


def _model_type(name: str, types: Mapping[str, str]) -> str | None:
    """The type of the innermost part of the model that a layer stands in and that has one."""
    around = [prefix for prefix in types if f"{name}.".startswith(f"{prefix}." if prefix else "")]
    return types[max(around, key=len)] if around else None


def _refused(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Name -> why it is never pruned, of every other matrix, stack of matrices and embedding."""
    kept = {id(layer.weight) for layer in layers}
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(plain_name(name))
    refused = {}
    for name, module in model.named_modules():
        if (is_linear(module) or isinstance(module, nn.Embedding)) and id(module.weight) not in kept:
            refused[plain_name(name)] = _reason(plain_name(name), module, owners.get(id(module.weight), []))
    return refused | stacked_weights(model)


def _reason(name: str, module: nn.Module, owners: Sequence[str]) -> str:
    if isinstance(module, nn.Embedding):
        return "it is an embedding"
    if len(owners) > 1:
        return f"its weight is tied to {next(owner for owner in owners if owner != name)}"
    if _NEVER.search(name):
        return "it is an adapter, a router, a table of positions or a step between stages"
    return "it stands outside the repeated blocks (poolers, heads and embeddings stay dense)"


def _nothing(model: nn.Module) -> str:
    names = shortened([plain_name(name) for name, module in model.named_modules() if is_linear(module)]) or "none"
    return (
        f"Nothing to prune in this {type(model).__name__}: no Linear or Conv1D of its own stands in a stack of blocks, "
        f"an nn.ModuleList of one kind of block with two or more in each. Its Linear layers are: {names}."
    )
