"""Targets: the layers that a config prunes in a model, each with its pattern."""

from dataclasses import dataclass

from torch import Tensor, nn

from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.find import GROUPS, Layer, find_layers, stacked_weights
from nxm_hf.patterns import Dense, Pattern
from nxm_hf.text import shortened


@dataclass(frozen=True)
class Target:
    """A layer, and the pattern that its weight is to hold."""

    layer: Layer
    pattern: Pattern

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def numel(self) -> int:
        """Entries of the weight."""
        return self.layer.weight.numel()

    @property
    def kept(self) -> int:
        """Entries that a mask of the pattern keeps."""
        return self.pattern.kept(self.layer.shape)

    def matrix(self) -> Tensor:
        """The weight as [out, in], with its gradient as `.grad` in the same shape; both share memory with the layer."""
        weight = self.layer.weight
        view = self.layer.matrix(weight)
        if view is weight:
            return weight
        view = view.detach()
        view.grad = None if weight.grad is None else self.layer.matrix(weight.grad)
        return view


@dataclass(frozen=True)
class Plan:
    """What is pruned, and what stays dense though nobody asked for that: name -> why."""

    targets: tuple[Target, ...]
    skipped: dict[str, str]

    @property
    def layers(self) -> dict[str, str]:
        """Name -> pattern, in JSON's words."""
        return {target.name: str(target.pattern) for target in self.targets}

    @property
    def reasons(self) -> str:
        """The first few that stay dense, each with why."""
        return shortened([f"{name}: {why.rstrip('.')}" for name, why in self.skipped.items()], "; ")


def resolve(model: nn.Module, config: NxMConfig) -> Plan:
    """Find what this config prunes in this model; what does not fit is an error, unless it is to be skipped."""
    if config.is_dense:
        return Plan((), {})
    targets, skipped = [], {}
    for layer in find_layers(model, config.include, config.exclude):
        pattern = _pattern_of(layer.role, config.patterns())
        try:
            _check(config.stages(pattern), layer.shape)
        except ValueError as error:
            skipped[layer.name] = str(error)
            continue
        if not isinstance(pattern, Dense):
            targets.append(Target(layer, pattern))
    if skipped and config.on_indivisible == "error":
        raise ValueError(_does_not_fit(skipped))
    if not targets:
        raise ValueError(
            f"Nothing is left to prune in this {type(model).__name__} by {config.pattern!r}. {_why(skipped)}"
        )
    return Plan(tuple(targets), skipped if config.include else skipped | stacked_weights(model))


def holds_pattern(plan: Plan) -> bool:
    """Whether every target has its zeros already."""
    return all(target.pattern.violations(target.matrix()) == 0 for target in plan.targets)


def _check(stages: tuple[Pattern, ...], shape: tuple[int, int]) -> None:
    """Raise unless a weight of this shape can hold the pattern, and every one on the way to it."""
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


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _pattern_of(role: str, patterns: dict[str, Pattern]) -> Pattern:
    groups = [group for group, roles in GROUPS.items() if role in roles]
    for key in (role, *groups, "default"):
        if key in patterns:
            return patterns[key]
    return Dense()


def _does_not_fit(skipped: dict[str, str]) -> str:
    rows = "\n".join(f"  {name}: {why}" for name, why in skipped.items())
    return (
        f"The pattern does not fit {len(skipped)} layers:\n{rows}\n"
        'Leave them dense with on_indivisible="skip" or exclude=[...], or choose another pattern.'
    )


def _why(skipped: dict[str, str]) -> str:
    if skipped:
        return f"It fits none of {_some(list(skipped))}. Choose another pattern."
    return 'No layer has a role named in pattern; add "default".'
