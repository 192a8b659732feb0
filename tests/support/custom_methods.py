"""Methods as users write them: four verbs and no base class."""

from dataclasses import dataclass

import torch

from nxm_hf.patterns import NM


@dataclass(frozen=True)
class Recorder:
    """Trains dense, prunes half of each group of four by magnitude at the end, and records the calls of its verbs."""

    calls: list

    def init(self, weight, clock):
        self.calls.append(("init", clock.step, clock.total))
        return {"seen": torch.zeros(1)}

    def before_step(self, weight, state, clock):
        self.calls.append(("before", clock.step, clock.total))

    def after_step(self, weight, state, clock):
        self.calls.append(("after", clock.step, clock.total))
        state["seen"] += 1

    def finish(self, weight, state, clock):
        order = weight.reshape(-1, 4).abs().argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1).reshape(weight.shape)
        weight.copy_(torch.where(rank < 2, weight, 0.0) + 0.0)


class Shrinking:
    """Pulls weights that are not among the two largest of four towards zero, a little more at every step."""

    def init(self, weight, clock):
        return {"count": torch.zeros((), dtype=torch.int64)}

    def before_step(self, weight, state, clock):
        if weight.grad is not None:
            weight.grad.add_(weight.masked_fill(self._mask(weight), 0.0), alpha=clock.progress)

    def after_step(self, weight, state, clock):
        state["count"] += 1

    def finish(self, weight, state, clock):
        weight.masked_fill_(~self._mask(weight), 0.0).add_(0.0)

    def _mask(self, weight):
        return NM(2, 4).mask(weight.detach().abs())

    def __repr__(self):
        return "Shrinking()"
