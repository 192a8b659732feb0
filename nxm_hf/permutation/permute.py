"""Permutation: channels in a better order for N:M, in a model that computes what it did before."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.patterns import NM, Pattern
from nxm_hf.permutation.channel_order import ROUNDS, kept, regroup
from nxm_hf.permutation.coupled_layers import Coupling, find_couplings
from nxm_hf.permutation.equivalence import Probe
from nxm_hf.storage.model_record import read_record
from nxm_hf.text import table


@dataclass(frozen=True)
class PermutedLayer:
    """A layer whose inputs stand in another order now: the share of its magnitude that a mask keeps, and kept before.

    `moved` are the layers whose outputs moved with them.
    """

    name: str
    role: str
    pattern: str
    magnitude: float
    before: float
    after: float
    moved: tuple[str, ...]


@dataclass(frozen=True)
class Permutation:
    """What a permutation has gained; prints as a table. `left` are the layers left alone, each with the reason."""

    layers: tuple[PermutedLayer, ...]
    left: dict[str, str]

    @property
    def before(self) -> float:
        """The share of the magnitude of all these layers together that masks kept before."""
        return self._share([layer.before for layer in self.layers])

    @property
    def after(self) -> float:
        """The share that masks keep now."""
        return self._share([layer.after for layer in self.layers])

    def _share(self, shares: list[float]) -> float:
        sizes = [layer.magnitude for layer in self.layers]
        return sum(size * share for size, share in zip(sizes, shares, strict=True)) / (sum(sizes) or 1.0)

    def __str__(self) -> str:
        head = ("layer", "role", "pattern", "kept before", "kept now", "moved with it")
        rows = [
            (x.name, x.role, x.pattern, f"{x.before:.4f}", f"{x.after:.4f}", ", ".join(x.moved)) for x in self.layers
        ]
        total = f"{len(self.layers)} layers: {self.before:.4f} of their magnitude kept before, {self.after:.4f} now."
        left = [f"  {name}: {why}." for name, why in self.left.items()]
        return "\n".join([table(head, rows), total, *(["Left as they were:", *left] if left else [])])


def permute(
    model: nn.Module,
    pattern: str | Pattern | Mapping[str, str] | NxMConfig = "2:4",
    *,
    inputs: Mapping[str, Any] | None = None,
    rounds: int = ROUNDS,
) -> Permutation:
    """Reorder channels so that masks of this pattern keep more of the weights; the model computes what it did.

    Two sets of channels have no order that matters: the hidden units of an FFN, and those of each head between value
    and attention output. They are brought into one in which the groups of N:M keep more; in place, and before training
    or pruning, since neither an optimizer's moments nor a mask moves along. It is the same order in every process.

    One example is run before and after. A layer that is then given anything but its old inputs in another order is put
    back, and the report says so.

    Args:
        model: a dense model.
        pattern: N:M for all layers, or by role; or an `NxMConfig`, whose `include` and `exclude` count too.
        inputs: the example, as a batch; by default a text or an image made by code.
        rounds: how long to look. More find a little more, and take as much longer.

    >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    >>> report = permute(model, "2:4", inputs={"src": torch.randn(1, 3, 8)})
    >>> [layer.name for layer in report.layers], report.after > report.before, sorted(report.left)
    (['layers.0.linear2'], True, ['layers.0.self_attn.out_proj'])
    """
    couplings, patterns, left = _choose(model, pattern)
    probe = Probe(model, {c.consumer.name: c.consumer.module for c in couplings}, inputs)
    orders = {}
    for coupling in tqdm(couplings, desc="Permuting channels", leave=False, delay=2):
        nm = patterns[coupling.consumer.name]
        orders[coupling.consumer.name] = regroup(coupling.scores(), nm.n, nm.m, coupling.section, rounds)
    before = {coupling.consumer.name: _kept(coupling, patterns) for coupling in couplings}
    left |= _apply(couplings, orders, probe)
    layers = [_report(c, patterns, before) for c in couplings if c.consumer.name not in left]
    return Permutation(tuple(layers), left)


def _choose(model: nn.Module, pattern: Any) -> tuple[list[Coupling], dict[str, NM], dict[str, str]]:
    """The couplings to look at, the pattern of each layer, and what is left alone from the start."""
    if read_record(model) is not None:
        raise ValueError("This model is sparse already, and its masks would not move along; permute the dense model.")
    config = pattern if isinstance(pattern, NxMConfig) else NxMConfig(pattern=pattern)
    plan = Plan.of(model, replace(config, recipe="asp", settings={}, on_indivisible="skip"))
    patterns = {target.name: target.pattern for target in plan.targets}
    if not any(isinstance(pattern, NM) for pattern in patterns.values()):
        raise ValueError(f'The order of channels matters to N:M; got {config.pattern!r}. Write pattern="2:4".')
    couplings, left = find_couplings(model)
    left = {name: why for name, why in left.items() if name in patterns}
    chosen = []
    for coupling in (coupling for coupling in couplings if coupling.consumer.name in patterns):
        if why := _reason(coupling, patterns):
            left[coupling.consumer.name] = why
        else:
            chosen.append(coupling)
    return chosen, patterns, left


def _reason(coupling: Coupling, patterns: Mapping[str, Pattern]) -> str:
    """Why the channels of a coupling are left as they are; nothing where they are not."""
    pattern = patterns[coupling.consumer.name]
    for layer in coupling.layers:
        if not isinstance(patterns.get(layer.name, pattern), NM):
            return f"{layer.name} is to hold {patterns[layer.name]}, and only N:M is the same in any order of outputs"
    if coupling.section % pattern.m:
        return f"{coupling.section} channels do not split into groups of {pattern.m}"
    if coupling.section == pattern.m:
        return "all channels that could change places stand in one group"
    return ""


def _apply(couplings: list[Coupling], orders: Mapping[str, Tensor], probe: Probe) -> dict[str, str]:
    """Permute, and put back what turns out not to be free: name -> why."""
    for coupling in couplings:
        coupling.permute(orders[coupling.consumer.name])
    wrong, differs = probe.changed({c.consumer.name: c.inputs(orders[c.consumer.name]) for c in couplings})
    for coupling in couplings:
        if differs or coupling.consumer.name in wrong:
            coupling.permute(orders[coupling.consumer.name].argsort())
    if differs:
        return dict.fromkeys(orders, "something else in this model reads channels that were to change places")
    why = "what stands between it and the layers before it does not treat all channels alike"
    return {name: why for name in orders if name in wrong}


def _kept(coupling: Coupling, patterns: Mapping[str, NM]) -> float:
    nm = patterns[coupling.consumer.name]
    return kept(coupling.scores(), nm.n, nm.m)


def _report(coupling: Coupling, patterns: Mapping[str, NM], before: Mapping[str, float]) -> PermutedLayer:
    layer, magnitude = coupling.consumer, coupling.scores().sum(dtype=torch.float64).item()
    return PermutedLayer(
        name=layer.name,
        role=layer.role,
        pattern=str(patterns[layer.name]),
        magnitude=magnitude,
        before=before[layer.name] / (magnitude or 1.0),
        after=_kept(coupling, patterns) / (magnitude or 1.0),
        moved=tuple(producer.name for producer in coupling.producers),
    )
