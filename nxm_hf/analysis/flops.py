"""Training FLOPs: what a recipe would save on hardware that skips pruned weights, known before it runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nxm_hf.analysis.density_schedule import Stretch, stretches
from nxm_hf.analysis.forward_flops import Work, measure
from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.patterns import Block, Pattern, Transposable
from nxm_hf.text import table


@dataclass(frozen=True)
class CostedLayer:
    """One pruned layer: the densities of its three products (Y, dX, dW), averaged over training."""

    name: str
    role: str
    pattern: str
    dense: int  # FLOPs of all its training steps, were it dense
    forward: float
    dx: float
    dw: float

    @property
    def ratio(self) -> float:
        """Its FLOPs over those of dense training: three products of equal cost."""
        return (self.forward + self.dx + self.dw) / 3


@dataclass(frozen=True)
class TrainingFlops:
    """The account of a training; prints as a table with its conventions under it.

    `linear` and `other` are the FLOPs of matrices that stay dense and of products that are no layer's (attention);
    `other` is None where no forward pass could be run. The FLOPs are those of one example in each step.
    """

    layers: tuple[CostedLayer, ...]
    linear: int
    other: int | None
    conventions: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """FLOPs of the pruned layers over those of dense training."""
        return self.sparse / self.pruned if self.pruned else 1.0

    @property
    def pruned(self) -> int:
        """FLOPs of the pruned layers, were they dense."""
        return sum(layer.dense for layer in self.layers)

    @property
    def sparse(self) -> float:
        """FLOPs of the pruned layers as they are trained."""
        return sum(layer.dense * layer.ratio for layer in self.layers)

    @property
    def total(self) -> int:
        """FLOPs of dense training, all that was counted."""
        return self.pruned + self.linear + (self.other or 0)

    @property
    def overall(self) -> float:
        """FLOPs of all that was counted over those of dense training."""
        return (self.total - self.pruned + self.sparse) / self.total if self.total else 1.0

    @property
    def other_share(self) -> float | None:
        """The share of dense training that is in no linear layer; None where that was not counted."""
        return None if self.other is None or not self.total else self.other / self.total

    def __str__(self) -> str:
        head = ("layer", "role", "pattern", "Y", "dX", "dW", "of dense")
        rows = [
            (one.name, one.role, one.pattern, *(f"{x:.4f}" for x in (one.forward, one.dx, one.dw, one.ratio)))
            for one in self.layers
        ]
        return "\n\n".join([table(head, rows), "\n".join(self._sums()), "\n".join(self.conventions)])

    def _sums(self) -> list[str]:
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
    config: NxMConfig | str | dict,
    total_steps: int,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    tokens: int = 128,
    done: int | None = None,
    sparse_dx: bool | None = None,
    sparse_dw: bool = False,
) -> TrainingFlops:
    """Work out what a training would cost from the schedules of its recipe; nothing is trained.

    A linear layer costs three equal products in each step: Y, dX and dW. Y counts the pattern's density where the
    weight holds it exactly, else 1. dX counts it where both sides of the weight are sparse (transposable patterns and
    two-dimensional blocks), or wherever Y does with `sparse_dx=True`. dW counts 1; with `sparse_dw=True` it counts
    the density where pruned weights get no gradient.

    `done` counts the first so many steps only, of a training that ended early.

    One forward pass on `inputs`, by default zeros of `tokens` tokens, weighs the layers and counts what is in none.
    """
    done = total_steps if done is None else done
    for name, value, example in (("total_steps", total_steps, 1000), ("tokens", tokens, 128), ("done", done, 500)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is a whole number of at least 1; got {value!r}. Write {name}={example}.")
    config = NxMConfig.from_any(config)
    plan, work = Plan.of(model, config), measure(model, inputs, tokens)
    runs: dict[Pattern, tuple[Stretch, ...]] = {}
    for target in plan.targets:
        if target.pattern not in runs:
            runs[target.pattern] = stretches(config.method(target.pattern), total_steps, done)
    layers = tuple(
        _layer(target, runs[target.pattern], 3 * done * work.matrices[target.name], sparse_dx, sparse_dw)
        for target in plan.targets
    )
    pruned = {layer.name for layer in layers}
    linear = sum(flops for name, flops in work.matrices.items() if name not in pruned)
    scale = 3 * done
    other = None if work.other is None else scale * work.other
    return TrainingFlops(layers, scale * linear, other, _conventions(work, sparse_dx, sparse_dw))


def _layer(target: Target, runs: Iterable[Stretch], dense: int, sparse_dx: bool | None, sparse_dw: bool) -> CostedLayer:
    steps = forward = dx = dw = 0.0
    for run in runs:
        density = run.pattern.kept(target.layer.shape) / target.numel
        both = _both_sides(run.pattern) if sparse_dx is None else sparse_dx
        steps += run.steps
        forward += run.steps * density
        dx += run.steps * (density if both else 1)
        dw += run.steps * (density if sparse_dw and run.frozen else 1)
    means: dict[str, Any] = {"forward": forward / steps, "dx": dx / steps, "dw": dw / steps}
    return CostedLayer(target.name, target.layer.role, str(target.pattern), dense, **means)


def _both_sides(pattern: Pattern) -> bool:
    """Whether the transpose of a weight is as sparse for hardware as the weight."""
    return isinstance(pattern, Transposable) or (isinstance(pattern, Block) and min(pattern.rows, pattern.cols) > 1)


def _conventions(work: Work, sparse_dx: bool | None, sparse_dw: bool) -> tuple[str, ...]:
    dx = {
        None: "the density of Y for transposable patterns and two-dimensional blocks, else 1",
        True: "the density of Y for every pattern",
        False: "1",
    }
    weighed = (
        "Layers weigh what a forward pass on one example does in them; element-wise work is not counted."
        if work.other is not None
        else "No forward pass could be run on zeros, so each layer counts once per token. Give inputs= to weigh them."
    )
    return (
        "Conventions: a linear layer costs three equal products in a step, Y, dX and dW.",
        "Y: the pattern's density where the weight holds it exactly, else 1.",
        f"dX: {dx[sparse_dx]}.",
        f"dW: {'the density where pruned weights get no gradient, else 1' if sparse_dw else '1'}.",
        weighed,
    )
