"""Training FLOPs: the cost of a recipe on hardware that skips pruned weights, computed without training."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from nxm_hf.analysis.density_schedule import DensityPeriod, density_schedule
from nxm_hf.analysis.forward_flops import ForwardFlops, count_forward_flops
from nxm_hf.config import NxMConfig
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.patterns import Block, Pattern, Transposable
from nxm_hf.text import table


@dataclass(frozen=True)
class CostedLayer:
    """The cost of one pruned layer.

    Args:
        name: The name of the layer.
        role: Its role, such as "query".
        pattern: Its final pattern.
        dense: FLOPs of all its training steps if it were dense.
        forward: The density that the product Y counts with, averaged over training.
        dx: The same for the gradient of the inputs, dX.
        dw: The same for the gradient of the weight, dW.
    """

    name: str
    role: str
    pattern: str
    dense: int
    forward: float
    dx: float
    dw: float

    @property
    def ratio(self) -> float:
        """Return its FLOPs divided by those of dense training; the three products cost the same."""
        return (self.forward + self.dx + self.dw) / 3


@dataclass(frozen=True)
class TrainingFlops:
    """The FLOPs of a training, for one example in each step; prints as a table with its conventions.

    Args:
        layers: The pruned layers.
        linear: FLOPs of the matrices that stay dense.
        other: FLOPs of products outside linear layers (attention); None if no forward pass could be run.
        conventions: Sentences on how FLOPs were counted.
    """

    layers: tuple[CostedLayer, ...]
    linear: int
    other: int | None
    conventions: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Return the FLOPs of the pruned layers divided by those of dense training."""
        return self.sparse / self.pruned if self.pruned else 1.0

    @property
    def pruned(self) -> int:
        """Return the FLOPs of the pruned layers if they were dense."""
        return sum(layer.dense for layer in self.layers)

    @property
    def sparse(self) -> float:
        """Return the FLOPs of the pruned layers as they are trained."""
        return sum(layer.dense * layer.ratio for layer in self.layers)

    @property
    def total(self) -> int:
        """Return all counted FLOPs of dense training."""
        return self.pruned + self.linear + (self.other or 0)

    @property
    def overall(self) -> float:
        """Return all counted FLOPs divided by those of dense training."""
        return (self.total - self.pruned + self.sparse) / self.total if self.total else 1.0

    @property
    def other_share(self) -> float | None:
        """Return the share of dense training outside linear layers; None if it was not counted."""
        return None if self.other is None or not self.total else self.other / self.total

    def to_dict(self) -> dict[str, Any]:
        """Return the account as a dict that JSON can hold."""
        layers = [{**asdict(layer), "ratio": layer.ratio} for layer in self.layers]
        totals = {"ratio": self.ratio, "overall": self.overall, "total": self.total}
        return {**asdict(self), **totals, "layers": layers}

    def __str__(self) -> str:
        header = ("layer", "role", "pattern", "Y", "dX", "dW", "of dense")
        rows = []
        for layer in self.layers:
            numbers = (f"{value:.4f}" for value in (layer.forward, layer.dx, layer.dw, layer.ratio))
            rows.append((layer.name, layer.role, layer.pattern, *numbers))
        return "\n\n".join([table(header, rows), "\n".join(self._totals()), "\n".join(self.conventions)])

    def _totals(self) -> list[str]:
        share = self.other_share
        pruned, linear = (f"{part / max(self.total, 1):.1%} of dense training" for part in (self.pruned, self.linear))
        return [
            f"Pruned layers: {self.ratio:.4f} of their dense FLOPs ({pruned}).",
            f"Linear layers that stay dense: {linear}.",
            "Outside linear layers: " + ("not counted." if share is None else f"{share:.1%} of dense training."),
            f"All that was counted: {self.overall:.4f} of dense training's {self.total:.4g} FLOPs (one example a step)",
        ]


def training_flops(
    model: nn.Module,
    config: NxMConfig | str | dict[str, Any],
    total_steps: int,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    tokens: int = 128,
    done: int | None = None,
    sparse_dx: bool | None = None,
    sparse_dw: bool = False,
) -> TrainingFlops:
    """Count the FLOPs of a training from the schedules of its recipe, without training.

    In each step a linear layer costs three equal products: Y, dX and dW. Y counts with the density of the pattern while
    the weight holds it exactly, otherwise with 1. One forward pass counts the FLOPs of each layer.

    Args:
        model: The model to be trained; it is left as it was.
        config: The sparsity of the training.
        total_steps: Optimizer steps of the training.
        inputs: Keyword arguments of the model for that forward pass; by default zeros.
        tokens: The length of the zeros.
        done: Count only so many steps, for a training that ended early.
        sparse_dx: Whether dX counts with the density of Y. By default it does for patterns that are sparse along both
            dimensions of the weight. These are transposable patterns and two-dimensional blocks.
        sparse_dw: Whether dW counts with the density while pruned weights get no gradient; otherwise it counts with 1.

    Returns:
        The FLOPs of each layer and of the training.

    Raises:
        ValueError: if a number is not positive, or the config is wrong or does not fit the model.
    """
    done = total_steps if done is None else done
    for name, value, example in (("total_steps", total_steps, 1000), ("tokens", tokens, 128), ("done", done, 500)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}. Write {name}={example}.")
    config = NxMConfig.from_any(config)
    plan, forward = Plan.of(model, config), count_forward_flops(model, inputs, tokens)
    schedules: dict[Pattern, tuple[DensityPeriod, ...]] = {}
    for target in plan.targets:
        if target.pattern not in schedules:
            schedules[target.pattern] = _schedule(config, target.pattern, total_steps, done)
    passes = 3 * done  # products of each matrix over the training
    layers = tuple(
        _cost(target, schedules[target.pattern], passes * forward.matrices[target.name], sparse_dx, sparse_dw)
        for target in plan.targets
    )
    pruned = {layer.name for layer in layers}
    linear = passes * sum(flops for name, flops in forward.matrices.items() if name not in pruned)
    other = None if forward.other is None else passes * forward.other
    return TrainingFlops(layers, linear, other, _conventions(forward, sparse_dx, sparse_dw))


def _schedule(config: NxMConfig, pattern: Pattern, total_steps: int, done: int) -> tuple[DensityPeriod, ...]:
    return density_schedule(config.method(pattern), total_steps, done)


def _cost(
    target: Target, periods: Iterable[DensityPeriod], dense: int, sparse_dx: bool | None, sparse_dw: bool
) -> CostedLayer:
    """Average the densities of the three products over all steps."""
    steps = forward = dx = dw = 0.0
    for period in periods:
        density = period.pattern.kept(target.layer.shape) / target.numel
        is_dx_sparse = _is_sparse_transposed(period.pattern) if sparse_dx is None else sparse_dx
        steps += period.steps
        forward += period.steps * density
        dx += period.steps * (density if is_dx_sparse else 1)
        dw += period.steps * (density if sparse_dw and period.frozen else 1)
    return CostedLayer(
        name=target.name,
        role=target.layer.role,
        pattern=str(target.pattern),
        dense=dense,
        forward=forward / steps,
        dx=dx / steps,
        dw=dw / steps,
    )


def _is_sparse_transposed(pattern: Pattern) -> bool:
    """Return whether hardware can also skip the zeros of the transposed weight, which dX multiplies by."""
    return isinstance(pattern, Transposable) or (isinstance(pattern, Block) and min(pattern.rows, pattern.cols) > 1)


def _conventions(forward: ForwardFlops, sparse_dx: bool | None, sparse_dw: bool) -> tuple[str, ...]:
    dx = {
        None: "the density of Y for transposable patterns and two-dimensional blocks, else 1",
        True: "the density of Y for every pattern",
        False: "1",
    }
    weighed = (
        "Layers weigh what a forward pass on one example does in them; element-wise work is not counted."
        if forward.other is not None
        else "No forward pass could be run on zeros, so each layer counts once per token. Give inputs= to weigh them."
    )
    return (
        "Conventions: a linear layer costs three equal products in a step, Y, dX and dW.",
        "Y: the pattern's density where the weight holds it exactly, else 1.",
        f"dX: {dx[sparse_dx]}.",
        f"dW: {'the density where pruned weights get no gradient, else 1' if sparse_dw else '1'}.",
        weighed,
    )
