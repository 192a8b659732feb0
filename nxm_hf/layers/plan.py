"""The plan: which layers of a model a config prunes, and to which pattern."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nxm_hf.config import NxMConfig
from nxm_hf.layers.find import GROUPS, Layer, find_layers, stacked_weights
from nxm_hf.layers.modules import inner_models, plain_name, unwrap, without_wrappers
from nxm_hf.layers.sharding import Shards
from nxm_hf.layers.weight_part import WeightPart
from nxm_hf.patterns import Dense, Pattern
from nxm_hf.text import shortened


@dataclass(frozen=True)
class Target:
    """A layer to prune, and the pattern that its weight must hold.

    Args:
        layer: The layer.
        pattern: The pattern.
        shards: The processes that share the weight; None if it is whole.
    """

    layer: Layer
    pattern: Pattern
    shards: Shards | None = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Return the layer's name."""
        return self.layer.name

    @property
    def numel(self) -> int:
        """Return the number of entries of the weight."""
        return self.layer.weight.numel()

    @property
    def kept(self) -> int:
        """Return the number of entries that a mask of the pattern keeps."""
        return self.pattern.kept(self.layer.shape)

    @property
    def part(self) -> WeightPart | None:
        """Return this process's part of the weight, or None if it holds the whole."""
        return None if self.shards is None else WeightPart(self.shards, self.layer)

    @property
    def pattern_here(self) -> Pattern:
        """Return the pattern as it is solved and counted in `matrix()`. Every process may have to call its methods."""
        return self.pattern if self.part is None else self.part.pattern(self.pattern)

    def matrix(self) -> Tensor:
        """Return the weight as [out, in], with its gradient as `.grad` in the same shape.

        Returns:
            The parameter itself, or a view of it; of a sharded weight, this process's part. All share memory with the
            layer.
        """
        if self.shards is not None:
            return self.shards.matrix(self.layer)
        weight = self.layer.weight
        view = self.layer.matrix(weight)
        if view is weight:
            return weight
        view = view.detach()
        view.grad = None if weight.grad is None else self.layer.matrix(weight.grad)
        return view


@dataclass(frozen=True)
class Plan:
    """The layers of one model that are pruned. It is made once per training and handed on.

    Args:
        model: The model, without wrappers such as torch.compile.
        targets: The layers to prune, in the model's order.
        skipped: Layers that stay dense although the config did not exclude them: name -> reason.
        whole: The module that is trained: the model itself, or a container around it, such as a SentenceTransformer.
        shards: The processes that share the weights; None if they are whole.
    """

    model: nn.Module = field(repr=False, compare=False)
    targets: tuple[Target, ...]
    skipped: dict[str, str]
    whole: nn.Module = field(repr=False, compare=False)
    shards: Shards | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, model: nn.Module, config: NxMConfig) -> "Plan":
        """Find the layers that a config prunes in a model.

        Args:
            model: The model; wrappers such as torch.compile are taken off. The layers of a container, such as a
                SentenceTransformer, are named as in the model inside it.
            config: The config, which says what to prune.

        Returns:
            The plan.

        Raises:
            ValueError: If a pattern does not fit a layer and `on_indivisible` is "error", if no layer is left, or if
                a container holds several models.
        """
        given, whole, model = model, without_wrappers(model), unwrap(model)
        if config.is_dense:
            return cls(model, (), {}, whole)
        _check_one_model(whole)
        shards = Shards.of(given)  # with torch.compile, accelerate shards its wrapper
        targets, skipped = [], {}
        for layer in find_layers(model, config.include, config.exclude):
            pattern = _pattern_of(layer.role, config.patterns())
            try:
                _check_shape(config.stages(pattern), layer.shape_of_one)
            except ValueError as error:
                skipped[layer.name] = str(error)
                continue
            if not isinstance(pattern, Dense):
                targets.append(Target(layer, pattern, shards))
        if skipped and config.on_indivisible == "error":
            raise ValueError(_does_not_fit(skipped))
        if not targets:
            raise ValueError(
                f"Nothing is left to prune in this {type(model).__name__} by {config.pattern!r}. "
                f"{_nothing_left(skipped)}"
            )
        skipped = skipped if config.include else skipped | stacked_weights(model)
        return cls(model, tuple(targets), skipped, whole, shards)

    @property
    def layers(self) -> dict[str, str]:
        """Return the pattern of each target as text, by the layer's name."""
        return {target.name: str(target.pattern) for target in self.targets}

    @property
    def reasons(self) -> str:
        """Return the first few skipped layers, each with its reason, as one line of text."""
        return shortened([f"{name}: {why.rstrip('.')}" for name, why in self.skipped.items()], "; ")

    @property
    def skipped_share(self) -> float:
        """Return the share of the model's weights that the skipped layers hold."""
        sizes = {plain_name(name): parameter.numel() for name, parameter in self.model.named_parameters()}
        skipped = (sizes.get(f"{name}.weight", sizes.get(name, 0)) for name in self.skipped)
        return sum(skipped) / max(sum(sizes.values()), 1)

    @property
    def trained(self) -> tuple[Target, ...]:
        """Return the targets whose weights train. A frozen one keeps the zeros that it has."""
        return tuple(target for target in self.targets if target.layer.weight.requires_grad)

    def holds_pattern(self) -> bool:
        """Return True if every target holds its pattern already. If weights are sharded, every process calls this."""
        if self.shards is None:
            return all(target.pattern.violations(target.matrix()) == 0 for target in self.targets)
        violations = [target.pattern_here.violations(target.matrix()) for target in self.targets]
        return int(self.shards.total(torch.tensor(sum(violations)))) == 0


def _check_one_model(whole: nn.Module) -> None:
    """Raise for a container of several models, because one directory has one record."""
    if len(names := [name for name, _ in inner_models(whole)]) > 1:
        raise ValueError(
            f"This {type(whole).__name__} holds {len(names)} models ({shortened(names)}), and only a container of one "
            f'can be made sparse. Prune each without training: nxm_hf.prune(model.get_submodule("{names[0]}"), "2:4").'
        )


def _check_shape(stages: Iterable[Pattern], shape: tuple[int, int]) -> None:
    """Raise unless a weight of this shape can hold the final pattern and every pattern on the way to it."""
    stages = tuple(stages)
    stages[-1].check(shape)
    for number, stage in enumerate(stages):
        try:
            stage.check(shape)
        except ValueError as error:
            fitting = [str(later) for later in stages[number:] if _fits(later, shape)]
            raise ValueError(f"{error} The first frame that fits is {fitting[0]}: set frames={fitting}.") from None


def _fits(pattern: Pattern, shape: tuple[int, int]) -> bool:
    try:
        pattern.check(shape)
    except ValueError:
        return False
    return True


def _pattern_of(role: str, patterns: dict[str, Pattern]) -> Pattern:
    """Return the pattern of a role: its own, else that of its group, else the default, else dense."""
    groups = [group for group, roles in GROUPS.items() if role in roles]
    for key in (role, *groups, "default"):
        if key in patterns:
            return patterns[key]
    return Dense()


def _does_not_fit(skipped: dict[str, str]) -> str:
    """Return one line for all layers, with the reason for each shape once."""
    advice = re.compile(r" Leave (this weight|it) out[^.]*\.")  # said below, for all of them
    reasons = " ".join(dict.fromkeys(advice.sub("", why) for why in skipped.values()))
    return (
        f"The pattern does not fit {len(skipped)} layers ({shortened(list(skipped))}). {reasons} "
        'Leave them dense with on_indivisible="skip" or exclude=[...], or choose another pattern.'
    )


def _nothing_left(skipped: dict[str, str]) -> str:
    if skipped:
        return f"It fits none of {shortened(list(skipped))}. Choose another pattern."
    return 'No layer has a role named in pattern; add "default".'
