"""Reorder the channels of a model so that N:M masks keep more, while the model computes the same function."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from nxm_hf.config import NxMConfig
from nxm_hf.layers.modules import unwrap
from nxm_hf.layers.plan import Plan
from nxm_hf.patterns import NM, Pattern
from nxm_hf.permutation.channel_order import ROUNDS, best_order, kept_score
from nxm_hf.permutation.coupled_layers import CoupledLayers, find_coupled_layers
from nxm_hf.permutation.equivalence import EquivalenceCheck
from nxm_hf.storage.model_record import read_record
from nxm_hf.text import table


@dataclass(frozen=True)
class PermutedLayer:
    """A layer whose inputs were reordered.

    Args:
        name: The name of the layer's module.
        role: Its role in a Transformer block: "ffn_out" or an attention output.
        pattern: The N:M pattern that the order was chosen for.
        magnitude: The sum of the scores of its weights: of their magnitudes, times the norms of their inputs if given.
        before: The share of that sum that a mask kept before.
        after: The share that a mask keeps now.
        producers: The layers whose outputs were reordered accordingly.
    """

    name: str
    role: str
    pattern: str
    magnitude: float
    before: float
    after: float
    producers: tuple[str, ...]


@dataclass(frozen=True)
class Permutation:
    """The result of `permute`. Printing it shows a table of the layers.

    Args:
        layers: The layers whose inputs were reordered.
        skipped: The layers that were not changed, each with the reason.
        scores: What masks keep: "magnitude", or "magnitude times the norm of the input".
    """

    layers: tuple[PermutedLayer, ...]
    skipped: dict[str, str]
    scores: str = "magnitude"

    @property
    def before(self) -> float:
        """Return the share of the scores of all these layers that masks kept before."""
        return self._mean(layer.before for layer in self.layers)

    @property
    def after(self) -> float:
        """Return the share of the scores of all these layers that masks keep now."""
        return self._mean(layer.after for layer in self.layers)

    def _mean(self, shares: Iterable[float]) -> float:
        """Return the mean of the layers' shares, weighted by their magnitudes."""
        sizes = [layer.magnitude for layer in self.layers]
        return sum(size * share for size, share in zip(sizes, shares, strict=True)) / (sum(sizes) or 1.0)

    def __str__(self) -> str:
        head = ("layer", "role", "pattern", "kept before", "kept now", "moved with it")
        rows = [
            (x.name, x.role, x.pattern, f"{x.before:.4f}", f"{x.after:.4f}", ", ".join(x.producers))
            for x in self.layers
        ]
        total = (
            f"{len(self.layers)} layers: {self.before:.4f} of their {self.scores} kept before, {self.after:.4f} now."
        )
        skipped = [f"  {name}: {reason}." for name, reason in self.skipped.items()]
        return "\n".join([table(head, rows), total, *(["Left as they were:", *skipped] if skipped else [])])


def permute(
    model: nn.Module,
    pattern: str | Pattern | Mapping[str, str] | NxMConfig = "2:4",
    *,
    inputs: Mapping[str, Any] | None = None,
    rounds: int = ROUNDS,
    norms: Mapping[str, Tensor] | None = None,
) -> Permutation:
    """Reorder channels in place so that N:M masks keep more of the weights. The model's outputs do not change.

    The order of two kinds of channels is free: the hidden units of an FFN, and the values within each head of
    attention. Permute before training or pruning, because neither optimizer states nor masks are reordered. Every
    process finds the same order.

    The model is run on one example before and after. A layer is put back, and listed as skipped, if its inputs are
    not the old ones in the new order.

    Args:
        model: A dense model with a stack of Transformer blocks.
        pattern: An N:M pattern, or a mapping by role; or a config, whose `include` and `exclude` are used too.
        inputs: The example, as the keyword arguments of the model; by default a random text or image.
        rounds: The number of rounds of the search. More rounds gain a little more, and take proportionally longer.
        norms: The norm of each input over calibration tokens, by the name of the layer. Masks then keep more of
            magnitude times norm, which are the scores of Wanda. A layer that is not there is ordered by magnitude.

    Returns:
        The layers that were reordered, the share that masks keep of each, and the layers that were skipped.

    Raises:
        ValueError: If the model is sparse already, no pattern is N:M, or the model cannot be run on the example.

    Example:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        >>> result = permute(model, "2:4", inputs={"src": torch.randn(1, 3, 8)})
        >>> [layer.name for layer in result.layers], result.after > result.before, sorted(result.skipped)
        (['layers.0.linear2'], True, ['layers.0.self_attn.out_proj'])
    """
    model = unwrap(model)
    patterns = _patterns(model, pattern)
    permutable, skipped = _permutable(model, patterns)
    check = EquivalenceCheck.record(model, {c.consumer.name: c.consumer.module for c in permutable}, inputs)
    norms = norms or {}
    scores = {c.consumer.name: c.scores(norms.get(c.consumer.name)) for c in permutable}
    orders = {}
    for coupled in tqdm(permutable, desc="Permuting channels", leave=False, delay=2):
        nm = _nm(patterns[coupled.consumer.name])
        orders[coupled.consumer.name] = best_order(scores[coupled.consumer.name], nm.n, nm.m, coupled.section, rounds)
    skipped |= _apply(permutable, orders, check)
    moved = [(coupled, coupled.consumer.name) for coupled in permutable if coupled.consumer.name not in skipped]
    layers = [_describe(coupled, _nm(patterns[name]), scores[name], orders[name]) for coupled, name in moved]
    return Permutation(tuple(layers), skipped, "magnitude times the norm of the input" if norms else "magnitude")


def _patterns(model: nn.Module, pattern: str | Pattern | Mapping[str, str] | NxMConfig) -> dict[str, Pattern]:
    """Return the pattern of each layer; raise if the model is sparse or no pattern is N:M."""
    if read_record(model) is not None:
        raise ValueError(
            "This model is sparse already, and its masks would not be permuted with it. Permute the dense model."
        )
    options: dict[str, Any] = {"pattern": pattern}
    config = pattern if isinstance(pattern, NxMConfig) else NxMConfig(**options)
    plan = Plan.of(model, replace(config, recipe="asp", settings={}, on_indivisible="skip"))
    patterns = {target.name: target.pattern for target in plan.targets}
    if not any(isinstance(pattern, NM) for pattern in patterns.values()):
        raise ValueError(f'The order of channels matters to N:M; got {config.pattern!r}. Write pattern="2:4".')
    return patterns


def _permutable(model: nn.Module, patterns: Mapping[str, Pattern]) -> tuple[list[CoupledLayers], dict[str, str]]:
    """Return the coupled layers to reorder, and the layers to skip, each with the reason."""
    coupled_layers, refused = find_coupled_layers(model)
    skipped = {name: reason for name, reason in refused.items() if name in patterns}
    permutable = []
    for coupled in (coupled for coupled in coupled_layers if coupled.consumer.name in patterns):
        if reason := _obstacle(coupled, patterns):
            skipped[coupled.consumer.name] = reason
        else:
            permutable.append(coupled)
    return permutable, skipped


def _obstacle(coupled: CoupledLayers, patterns: Mapping[str, Pattern]) -> str:
    """Return why the channels of coupled layers cannot be reordered for these patterns; "" if they can."""
    pattern = patterns[coupled.consumer.name]
    for layer in coupled.layers:
        if not isinstance(patterns.get(layer.name, pattern), NM):
            return f"{layer.name} is to hold {patterns[layer.name]}, and only N:M is the same in any order of outputs"
    m = _nm(pattern).m
    if coupled.section % m:
        return f"{coupled.section} channels do not split into groups of {m}"
    if coupled.section == m:
        return "all channels that could change places stand in one group"
    return ""


def _apply(
    permutable: Sequence[CoupledLayers], orders: Mapping[str, Tensor], check: EquivalenceCheck
) -> dict[str, str]:
    """Permute the layers. Undo the reorderings that change the model's outputs, and return them with the reason.

    If the check itself fails, all layers are put back.
    """
    input_orders = {c.consumer.name: c.input_order(orders[c.consumer.name]) for c in permutable}
    wrong, output_differs = set(orders), True
    try:
        for coupled in permutable:
            coupled.permute(orders[coupled.consumer.name])
        wrong, output_differs = check.differences(input_orders)
    finally:
        for coupled in permutable:
            if output_differs or coupled.consumer.name in wrong:
                coupled.permute(orders[coupled.consumer.name].argsort())
    if output_differs:
        return dict.fromkeys(orders, "something else in this model reads channels that were to change places")
    reason = "an operation between it and the layers before it does not treat all channels alike"
    return {name: reason for name in orders if name in wrong}


def _nm(pattern: Pattern) -> NM:
    assert isinstance(pattern, NM)  # `_obstacle` has refused all others
    return pattern


def _describe(coupled: CoupledLayers, pattern: NM, scores: Tensor, order: Tensor) -> PermutedLayer:
    total = scores.sum(dtype=torch.float64).item()
    return PermutedLayer(
        name=coupled.consumer.name,
        role=coupled.consumer.role,
        pattern=str(pattern),
        magnitude=total,
        before=kept_score(scores, pattern.n, pattern.m) / (total or 1.0),
        after=kept_score(scores[order], pattern.n, pattern.m) / (total or 1.0),
        producers=tuple(producer.name for producer in coupled.producers),
    )
