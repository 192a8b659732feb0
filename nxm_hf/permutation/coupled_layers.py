"""Couplings: channels that stand between two layers and nowhere else, so that both can number them anew."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nxm_hf.families import HEAD_SIZE_ATTRIBUTES, PRODUCERS
from nxm_hf.layers.find import Layer, find_layers
from nxm_hf.layers.modules import plain_name, unwrap
from nxm_hf.text import shortened

QUERIES_KEYS_VALUES = "qkv"  # the role of the three in one


@dataclass(frozen=True)
class Coupling:
    """The channels that one layer reads and others write: hidden units of an FFN, or values that attention averages.

    `columns` [copies, channels] says which inputs of the consumer read a channel: several heads, where they share one
    value. `rows` says, for each producer, which of its outputs write it: two, where gate and input are one matrix.
    Channels may change places within a section, which is a head of attention or the whole FFN.
    """

    consumer: Layer
    producers: tuple[Layer, ...]
    columns: Tensor
    rows: tuple[Tensor, ...]
    section: int

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All that take part."""
        return (self.consumer, *self.producers)

    @torch.no_grad()
    def scores(self) -> Tensor:
        """The sizes of the consumer's weights as [channels, copies * out], in float32 or more."""
        matrix = self.consumer.matrix(self.consumer.weight.detach()).abs()
        sizes = matrix[:, self.columns].permute(2, 1, 0).flatten(1)
        return sizes.to(torch.promote_types(sizes.dtype, torch.float32)).contiguous()

    def inputs(self, order: Tensor) -> Tensor:
        """Which of its old inputs the consumer reads at each place, with the channels in this order."""
        places = torch.arange(self.consumer.shape[1], device=order.device)
        places[self.columns.flatten()] = self.columns[:, order].flatten()
        return places

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Bring the channels into this order, in place and in all layers."""
        matrix = self.consumer.matrix(self.consumer.weight)
        matrix.copy_(matrix[:, self.inputs(order)])
        for producer, rows in zip(self.producers, self.rows, strict=True):
            moved = rows[:, order].flatten()
            matrix, bias = producer.matrix(producer.weight), producer.module.bias
            matrix[rows.flatten()] = matrix[moved]
            if bias is not None:
                bias[rows.flatten()] = bias[moved]


def find_couplings(model: nn.Module) -> tuple[list[Coupling], dict[str, str]]:
    """The couplings of a model, in its order, and the layers that read channels in no way we know: name -> why."""
    model = unwrap(model)
    layers, found, left = find_layers(model), [], {}
    modules = {plain_name(name): module for name, module in model.named_modules()}
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    for consumer in (layer for layer in layers if layer.role in PRODUCERS):
        try:
            coupling = _coupled(consumer, [layer for layer in layers if layer.scope == consumer.scope], modules)
            for layer in coupling.layers:
                _check(layer, owners)
        except ValueError as why:
            left[consumer.name] = str(why)
        else:
            found.append(coupling)
    return found, left


def _coupled(consumer: Layer, neighbours: Sequence[Layer], modules: Mapping[str, nn.Module]) -> Coupling:
    """The coupling that ends in a layer; a ValueError says why there is none."""
    producers = tuple(layer for layer in neighbours if layer.role in PRODUCERS[consumer.role])
    rivals = [layer.name for layer in neighbours if layer.role == consumer.role and layer is not consumer]
    if not producers or rivals:
        raise ValueError(f"{rivals[0]} may read the same channels" if rivals else "no layer is known to lead into it")
    device, width = consumer.weight.device, consumer.shape[1]
    if consumer.role == "ffn_out":
        section = channels = width
        rows = [torch.arange(layer.shape[0]) for layer in producers]
    else:
        section = _head_size(producers[0], modules)
        rows = [_values(layer, width) for layer in producers]
        channels = len(rows[0])
    if not all(len(some) and len(some) % channels == 0 for some in rows) or width % channels or channels % section:
        sizes = shortened([f"{layer.name} ({layer.shape[0]})" for layer in producers])
        raise ValueError(f"its {width} inputs are not the outputs of {sizes}, in heads of one size")
    return Coupling(
        consumer,
        producers,
        _readers(width, channels, section).to(device),
        tuple(some.view(-1, channels).to(device) for some in rows),
        section,
    )


def _values(layer: Layer, width: int) -> Tensor:
    """Which outputs are values: where queries, keys and values are one, the last ones."""
    outputs = layer.shape[0]
    begin = outputs - (outputs - width) // 2 if layer.role == QUERIES_KEYS_VALUES else 0
    return torch.arange(begin, outputs)


def _readers(width: int, channels: int, section: int) -> Tensor:
    """Which inputs read each channel [copies, channels]: heads that share one value follow each other."""
    copies = width // channels
    return torch.arange(width).view(-1, copies, section).transpose(0, 1).reshape(copies, channels)


def _head_size(producer: Layer, modules: Mapping[str, nn.Module]) -> int:
    """The width of a head, as the module around the values says it."""
    known = vars(modules[producer.name.rpartition(".")[0]])
    sizes = [known[name] for name in HEAD_SIZE_ATTRIBUTES if isinstance(known.get(name), int)]
    if not sizes:
        raise ValueError("the width of its heads is not known")
    return sizes[0]


def _check(layer: Layer, owners: Mapping[int, int]) -> None:
    """Raise for a layer whose channels must stay where they are."""
    for reason in _obstacles(layer, owners):
        raise ValueError(f"{layer.name} {reason}")


def _obstacles(layer: Layer, owners: Mapping[int, int]) -> Iterator[str]:
    parameters = dict(layer.module.named_parameters())
    if layer.name.endswith(".base_layer"):
        yield "has an adapter"
    if parameters.keys() - {"weight", "bias"}:
        yield "holds more than a weight and a bias"
    if isinstance(layer.module, nn.Conv1d) and layer.module.groups > 1:
        yield "is a convolution in groups"
    if any(owners[id(parameter)] > 1 for parameter in parameters.values()):
        yield "is tied to another layer"
    if not all(parameter.requires_grad for parameter in parameters.values()):
        yield "is frozen"
    if not all(bool(parameter.isfinite().all()) for parameter in parameters.values()):
        yield "holds NaN or infinities"
