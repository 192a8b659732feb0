"""Layers coupled by channels that nothing else reads or writes, so that their order is free."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nxm_hf.families import HEAD_SIZE_ATTRIBUTES, PRODUCERS
from nxm_hf.layers.find import Layer, find_layers
from nxm_hf.layers.modules import plain_name
from nxm_hf.text import shortened

FUSED_QKV = "qkv"  # the role of a layer that computes queries, keys and values at once


@dataclass(frozen=True)
class CoupledLayers:
    """A layer and the layers that write its input channels: hidden units of an FFN, or values of attention.

    Args:
        consumer: The layer that reads the channels.
        producers: The layers that write them; two in a gated FFN.
        columns: The inputs of the consumer that read each channel, [copies, channels]. There are several copies if
            several heads share one value.
        rows: For each producer, its outputs that write each channel, [copies, channels]. There are two copies if gate
            and input of an FFN are one matrix.
        section: The number of channels within which the order is free: one head of attention, or the whole FFN.
    """

    consumer: Layer
    producers: tuple[Layer, ...]
    columns: Tensor
    rows: tuple[Tensor, ...]
    section: int

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Return the consumer and the producers."""
        return (self.consumer, *self.producers)

    @torch.no_grad()
    def scores(self, norms: Tensor | None = None) -> Tensor:
        """Return the score of each of the consumer's weights: its magnitude, times the norm of its input if given.

        Args:
            norms: The norm of each input of the consumer over calibration tokens, [in].

        Returns:
            The scores, [channels, copies * out], in fp32 or fp64.
        """
        matrix = self.consumer.matrix(self.consumer.weight.detach()).abs()
        matrix = matrix if norms is None else matrix * norms.to(matrix.device, torch.float32)
        scores = matrix[:, self.columns].permute(2, 1, 0).flatten(1)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).contiguous()

    def input_order(self, order: Tensor) -> Tensor:
        """Return the order of the consumer's inputs that an order of the channels implies.

        Args:
            order: The channel at each place, [channels].

        Returns:
            The old input at each place, [in].
        """
        inputs = torch.arange(self.consumer.shape[1], device=order.device)
        inputs[self.columns.flatten()] = self.columns[:, order].flatten()
        return inputs

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Reorder the channels in all layers, in place.

        Args:
            order: The old channel at each place, [channels].
        """
        matrix = self.consumer.matrix(self.consumer.weight)
        matrix.copy_(matrix[:, self.input_order(order)])
        for producer, rows in zip(self.producers, self.rows, strict=True):
            sources = rows[:, order].flatten()
            matrix = producer.matrix(producer.weight)
            matrix[rows.flatten()] = matrix[sources]
            bias = producer.module.bias
            if isinstance(bias, Tensor):
                bias[rows.flatten()] = bias[sources]


def find_coupled_layers(model: nn.Module) -> tuple[list[CoupledLayers], dict[str, str]]:
    """Find the coupled layers of a model.

    Args:
        model: The model, without wrappers.

    Returns:
        The coupled layers in the order of the model, and the consumers whose inputs cannot be reordered, each with
        the reason.
    """
    layers = find_layers(model)
    modules = {plain_name(name): module for name, module in model.named_modules()}
    adapted = {id(base) for module in model.modules() if (base := module._modules.get("base_layer")) is not None}
    owners = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    coupled_layers: list[CoupledLayers] = []
    skipped: dict[str, str] = {}
    for consumer in (layer for layer in layers if layer.role in PRODUCERS):
        try:
            coupled = _couple(consumer, [layer for layer in layers if layer.scope == consumer.scope], modules)
            for layer in coupled.layers:
                _check_movable(layer, owners, adapted)
        except ValueError as reason:
            skipped[consumer.name] = str(reason)
        else:
            coupled_layers.append(coupled)
    return coupled_layers, skipped


def _couple(consumer: Layer, neighbours: Sequence[Layer], modules: Mapping[str, nn.Module]) -> CoupledLayers:
    """Return the layers coupled to a consumer; a ValueError gives the reason if there are none."""
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
        rows = [_value_outputs(layer, width) for layer in producers]
        channels = len(rows[0])
    if not all(len(some) and len(some) % channels == 0 for some in rows) or width % channels or channels % section:
        sizes = shortened([f"{layer.name} ({layer.shape[0]})" for layer in producers])
        raise ValueError(f"its {width} inputs are not the outputs of {sizes}, in heads of one size")
    return CoupledLayers(
        consumer,
        producers,
        _consumer_columns(width, channels, section).to(device),
        tuple(some.view(-1, channels).to(device) for some in rows),
        section,
    )


def _value_outputs(layer: Layer, width: int) -> Tensor:
    """Return which outputs of a layer are values: all, or the last ones if it computes queries and keys too."""
    outputs = layer.shape[0]
    begin = outputs - (outputs - width) // 2 if layer.role == FUSED_QKV else 0
    return torch.arange(begin, outputs)


def _consumer_columns(width: int, channels: int, section: int) -> Tensor:
    """Return which inputs read each channel, [copies, channels]; heads that share one value are adjacent."""
    copies = width // channels
    return torch.arange(width).view(-1, copies, section).transpose(0, 1).reshape(copies, channels)


def _head_size(producer: Layer, modules: Mapping[str, nn.Module]) -> int:
    """Return the width of a head, from an attribute of the attention module."""
    attributes = vars(modules[producer.name.rpartition(".")[0]])
    sizes = [attributes[name] for name in HEAD_SIZE_ATTRIBUTES if isinstance(attributes.get(name), int)]
    if not sizes:
        raise ValueError("the width of its heads is not known")
    return sizes[0]


def _check_movable(layer: Layer, owners: Mapping[int, int], adapted: Collection[int]) -> None:
    """Raise if the channels of a layer must stay where they are."""
    for obstacle in _obstacles(layer, owners, adapted):
        raise ValueError(f"{layer.name} {obstacle}")


def _obstacles(layer: Layer, owners: Mapping[int, int], adapted: Collection[int]) -> Iterator[str]:
    parameters = dict(layer.module.named_parameters())
    if id(layer.module) in adapted:
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
