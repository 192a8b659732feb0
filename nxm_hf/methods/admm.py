"""ADMM: train the dense weight, and pull it ever more towards a sparse one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nxm_hf.methods.base import NO_CHANGE, Measurement, Method, Slot, State, measure_alone
from nxm_hf.methods.rho import measure_by_norms, measure_by_quantile
from nxm_hf.methods.schedules import Clock, Constant, Evenly, EveryEpoch, PeriodicSchedule, Schedule
from nxm_hf.methods.scores import as_mask, nearest_mask
from nxm_hf.patterns import NM, Pattern
from nxm_hf.solvers.masked_ops import pruned_part
from nxm_hf.solvers.weight_ops import admm_update, keep, mask_change


@dataclass(frozen=True)
class ADMM(Method):
    """The alternating direction method of multipliers: minimise loss(W) subject to W = Z, with Z sparse.

        each step     W = optimizer(W, G + rho * (W - Z + U))             coupled
                      W = optimizer(W - contraction/K * (W - Z + U), G)   decoupled, K steps to an update
        each update   Z = project(W + U),  U = U + dual * (W - Z),  then U = U * rho / (the next rho)

    U is the dual variable, the running sum of W - Z. With `dual` 1, Z and U are nowhere both non-zero, so one tensor
    R = Z - U holds both. With V = W + U and its nearest mask m, R = V where m keeps and R = -V elsewhere. The nearest
    mask of R is m again. With `dual` 0, U = 0 and R = Z. With a `dual` in between, the state holds U beside R.

    - `rho` None is measured once, at the first step with a gradient, from norms; "quantile" is measured over the first
      steps. See `nxm_hf.methods.rho`. There is no pull before it is measured.
    - `growth` times `rho` is the strength in use; it must not fall. It changes at updates, when U is scaled too, so
      that the force rho * U stays what it was.
    - `start` is R before the first update: "A" R = W, without any pull; "B" R = project(W); "C" an update at step 0.
    - `projection` and `scores` are "magnitude" or "fisher", the metrics of `nxm_hf.methods.scores`. In the metric
      `projection`, Z is the nearest sparse weight to V; the state holds the mask of a metric that changes. `scores`
      choose what `finish` keeps: the largest sum of their squares.
    - `pull` "pruned" leaves out the entries that Z keeps: they train as if there were no penalty. The state holds the
      mask. Before the first update of start "A" there is no mask, and no pull.
    """

    pattern: Pattern
    rho: float | str | None = None
    contraction: float = 1.0
    penalty: str = "coupled"
    update: PeriodicSchedule = Evenly(80)
    start: str = "C"
    dual: float = True
    scores: str = "magnitude"
    projection: str = "magnitude"
    growth: Schedule[float] = Constant(1.0)
    pull: str = "all"

    def init(self, weight: Tensor, clock: Clock) -> State:
        if isinstance(self.update, EveryEpoch):
            self.update.interval(clock)  # raises now, not at the first step, if the length of an epoch is unknown
        state = {
            Slot.R: torch.empty_like(weight),
            Slot.UPDATES: torch.tensor(0),
            Slot.MASK_CHANGE: NO_CHANGE.clone(),
        }
        if self.penalty == "coupled" and not isinstance(self.rho, float | int):
            state[Slot.RHO] = torch.zeros((), dtype=torch.float64)
        if self.rho == "quantile":
            state[Slot.GRADIENT] = torch.zeros_like(weight)
        if self._grows:
            state[Slot.GROWTH] = torch.tensor(self.growth(clock), dtype=torch.float64)
        if self._keeps_dual:
            state[Slot.DUAL] = torch.zeros_like(weight)
        if self.start == "C":
            self._update(weight, state, clock)
        elif self.start == "A":
            state[Slot.R].copy_(weight)
        else:
            self._project(weight, state, clock)
        return state

    def measure(self, weight: Tensor, state: State, clock: Clock) -> Measurement:
        if weight.grad is None or self.penalty != "coupled" or isinstance(self.rho, float | int):
            return
        # A state that was saved with other settings has no rho.
        if state.setdefault(Slot.RHO, torch.zeros((), dtype=torch.float64)) != 0:
            return
        if self.rho is None:
            state[Slot.RHO] = yield from measure_by_norms(self._pull(weight, state), weight.grad, clock)
        else:
            state[Slot.RHO] = yield from measure_by_quantile(weight, state, self.pattern, self.projection, clock)

    def before_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        if weight.grad is None:
            return
        if clock.whole is None:
            measure_alone(self.measure(weight, state, clock))
        if self.penalty == "decoupled":
            fraction = min(self.contraction / self.update.interval(clock), 1.0)
            if self.pull == "all":
                weight.lerp_(state[Slot.R], fraction)
            else:
                weight.sub_(self._pull(weight, state), alpha=fraction)
            return
        pull = self._pull(weight, state)
        rho = self.rho if isinstance(self.rho, float | int) else state[Slot.RHO].item()
        if Slot.GROWTH in state:
            rho *= state[Slot.GROWTH].item()
        weight.grad.add_(pull, alpha=rho * clock.loss_scale)

    def after_step(self, weight: Tensor, state: State, clock: Clock) -> None:
        if self.update(clock):
            self._update(weight, state, clock)

    def kept_at_finish(self, weight: Tensor, state: State, clock: Clock) -> tuple[Tensor, Tensor | Pattern]:
        if isinstance(self.pattern, NM) and self.scores == "magnitude":
            return weight, self.pattern  # its largest entries are its nearest weight
        return weight, nearest_mask(weight, self.pattern, self.scores, clock)

    def finish(self, weight: Tensor, state: State, clock: Clock) -> Tensor:
        _, kept_entries = self.kept_at_finish(weight, state, clock)
        mask = as_mask(kept_entries, weight)
        keep(weight, mask)
        return mask

    def _pull(self, weight: Tensor, state: State) -> Tensor:
        """Return W - Z + U, or its pruned entries alone."""
        pull = weight - state[Slot.R]
        if self.pull == "all":
            return pull
        return pruned_part(pull, state[Slot.MASK]) if Slot.MASK in state else torch.zeros_like(pull)

    @property
    def _grows(self) -> bool:
        return self.penalty == "coupled" and self.growth != Constant(1.0)

    @property
    def _keeps_dual(self) -> bool:
        """Return True if U is kept beside R, since both Z and U may be non-zero at an entry."""
        return 0 < self.dual < 1

    @property
    def _keeps_mask(self) -> bool:
        """Return True if the mask of Z is kept beside R: it is not the nearest mask of R, or each step needs it."""
        return self._keeps_dual or self.projection != "magnitude" or self.pull == "pruned"

    def _project(self, weight: Tensor, state: State, clock: Clock) -> None:
        """Begin with Z = project(W) and U = 0."""
        mask = nearest_mask(weight, self.pattern, self.projection, clock)
        state[Slot.R].copy_(weight)
        keep(state[Slot.R], mask)
        if self._keeps_mask:
            state[Slot.MASK] = mask

    def _update(self, weight: Tensor, state: State, clock: Clock) -> None:
        """Project and update the dual variable, both in the state and in place."""
        first, scale = bool(state[Slot.UPDATES] == 0), self._grow(state, clock)
        if self._keeps_mask:
            change = self._update_with_mask(weight, state, first, scale, clock)
        else:
            change = admm_update(weight, state[Slot.R], self.pattern, first, bool(self.dual), scale)
        state[Slot.UPDATES] += 1
        if change is not None:
            state[Slot.MASK_CHANGE] = change

    def _grow(self, state: State, clock: Clock) -> float:
        """Move on to the next strength, and return the factor that keeps the force rho * U."""
        if not self._grows:
            return 1.0
        after = self.growth(clock)
        before = state.setdefault(Slot.GROWTH, torch.tensor(after, dtype=torch.float64)).item()
        state[Slot.GROWTH] = torch.tensor(after, dtype=torch.float64)
        return before / after if after else 1.0

    def _update_with_mask(self, weight: Tensor, state: State, first: bool, scale: float, clock: Clock) -> Tensor | None:
        """Update with a mask, and a dual variable if it is not a part of R, that the state holds."""
        r = state[Slot.R]
        before = None if first else mask_of_z(self.pattern, state)  # there is no Z yet, and R may hold nothing
        if before is None:
            dual = torch.zeros_like(r)
        else:
            dual = state[Slot.DUAL] if self._keeps_dual else -pruned_part(r, before)
        v = weight + dual
        mask = nearest_mask(v, self.pattern, self.projection, clock)
        torch.mul(v, mask.view(torch.uint8), out=r)  # Z
        dual = dual.lerp(v - r, float(self.dual)).mul_(scale)  # U + dual * (W - Z), exactly V - Z or U at the ends
        r.sub_(dual)
        state[Slot.MASK] = mask
        if self._keeps_dual:
            state[Slot.DUAL] = dual
        return None if before is None else mask_change(before, mask)


def mask_of_z(pattern: Pattern, state: State) -> Tensor:
    """Return the mask of Z, the sparse weight of the last update of ADMM.

    Args:
        pattern: The pattern of the weight.
        state: The state of ADMM for this weight.
    """
    return state[Slot.MASK] if Slot.MASK in state else pattern.nearest(state[Slot.R])


def sparse_weight(pattern: Pattern, state: State) -> Tensor:
    """Return Z, the sparse weight of the last update of ADMM.

    Args:
        pattern: The pattern of the weight.
        state: The state of ADMM for this weight.
    """
    z = state[Slot.R] + state[Slot.DUAL] if Slot.DUAL in state else state[Slot.R]
    return z * mask_of_z(pattern, state)
