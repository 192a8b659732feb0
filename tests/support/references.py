"""References of recipes: parameters as plain tensors, optimizers from their formulas, each recipe as in its paper.

Of the library only patterns' names are used and, for `set`, its random numbers. A law is a recipe on one weight:
`forward(t, w)` is what the t-th step (counted from 1) computes with, as an expression that autograd goes through;
`train(t, w, g, hand)` is the weight after it; `mask(w)` is the mask of the deployed weight then.
"""

import math
import zlib

import torch
from torch.func import functional_call

from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import NM, Unstructured, parse
from tests.support.toy_training import Toy, loss_at

ADAPTIVE = ("adam", "adamw")


class HandOptimizer:
    """The optimizers of `toy_training.OPTIMIZERS` on one weight, from their formulas."""

    def __init__(self, kind):
        self.kind, self.t, self.first, self.second = kind, 0, 0.0, 0.0

    def __call__(self, w, g):
        self.t += 1
        if self.kind == "sgd":
            return w - 0.1 * g
        if self.kind == "momentum":
            self.first = 0.9 * self.first + g + 1e-3 * w
            return w - 0.02 * self.first
        self.first, self.second = 0.9 * self.first + 0.1 * g, 0.999 * self.second + 0.001 * g * g
        size = (self.second / (1 - 0.999**self.t)).sqrt() + 1e-8
        decay = 0.02 * 0.1 * w if self.kind == "adamw" else 0.0
        return w - decay - 0.02 * self.first / (1 - 0.9**self.t) / size

    def forget(self, where, which="both"):
        """Reset the moments of some entries."""
        if self.t and which != "none":
            self.first = torch.where(where, 0.0, self.first) if torch.is_tensor(self.first) else 0.0
        if self.t and which == "both" and self.kind in ADAPTIVE:
            self.second = torch.where(where, 0.0, self.second)


class _WithTensors:
    """A toy that computes with other tensors in the place of its parameters."""

    def __init__(self, toy, tensors):
        self.toy, self.tensors = toy, tensors

    def parameters(self):
        return iter(self.tensors.values())

    def __call__(self, x):
        return functional_call(self.toy, self.tensors, (x,))


def by_hand(kind, law, steps):
    """Train by hand. Yield for each step the weights that it used, the weights after it, and the deployed weights."""
    toy = Toy(dtype=torch.float64)
    values = {name: p.detach().clone() for name, p in toy.named_parameters()}
    hands = {name: HandOptimizer(kind) for name in values}
    laws = {name: law(name.removesuffix(".weight")) for name in values if "blocks" in name and "weight" in name}
    for name, rule in laws.items():
        values[name] = rule.begin(values[name])
    for t in range(1, steps + 1):
        leaves = {name: w.clone().requires_grad_() for name, w in values.items()}
        used = {name: laws[name].forward(t, w) if name in laws else w for name, w in leaves.items()}
        loss = loss_at(t - 1, _WithTensors(toy, used))
        for name, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            train = laws[name].train if name in laws else lambda t, w, g, hand: hand(w, g)
            values[name] = train(t, values[name], g, hands[name])
        trained = [values[name] for name in laws]
        deployed = [values[name] * rule.mask(values[name]) for name, rule in laws.items()]
        yield [used[name].detach() for name in laws], trained, deployed


def top(scores, pattern):
    """Return the mask of the highest scores, by counting for each the scores above it; ties go to the lower index."""
    pattern = parse(pattern)
    n, m = (pattern.n, pattern.m) if isinstance(pattern, NM) else (1, 1)
    if isinstance(pattern, Unstructured):
        n, m = round(pattern.density * scores.numel()), scores.numel()
    groups = scores.reshape(-1, m)
    index = torch.arange(m)
    larger = groups[:, None, :] > groups[:, :, None]
    equal_and_before = (groups[:, None, :] == groups[:, :, None]) & (index[None, :] < index[:, None])
    return ((larger | equal_and_before).sum(-1) < n).reshape(scores.shape)


def straight_through(w, masked):
    """Return the value of `masked` with the gradient of `w`."""
    return w + (masked - w).detach()


class Law:
    """A recipe on one weight; this one is dense."""

    def __init__(self, name, pattern="2:4"):
        self.name, self.pattern = name, pattern

    def begin(self, w):
        return w

    def forward(self, t, w):
        return w

    def train(self, t, w, g, hand):
        return hand(w, g)

    def mask(self, w):
        return top(w.abs(), self.pattern)


class Algorithm1(Law):
    """Stosic and Stosic, as printed: split every r steps, step on all, exploit what does not participate."""

    def __init__(self, name, pattern="2:4", r=1, s=1.0, v=math.inf, z=math.inf, beta=0.0, forget="none"):
        super().__init__(name, pattern)
        self.r, self.s, self.v, self.z, self.beta, self.forgets = r, s, v, z, beta, forget

    def forward(self, t, w):
        if (t - 1) % self.r == 0:
            self.p = top(w.detach().abs(), self.pattern)
        return straight_through(w, w * self.p)

    def train(self, t, w, g, hand):
        n = ~self.p
        if hand.kind in ADAPTIVE:
            new = hand(w, g)
            new = torch.where(n, w + self.s * (new - w), new)
        else:
            new = hand(w, torch.where(n, self.s * g, g))
        new = torch.where(n, new - self.beta * new, new)
        if t >= self.v or t % self.z == 0:
            new = torch.where(n, 0.0, new)
            hand.forget(n, self.forgets)
        return new


class MaskDecay(Law):
    """Kao et al.: pruned weights times a gain, which autograd either goes through ("chain") or does not ("ste")."""

    def __init__(self, name, gain, grad="chain", r=1, pattern="2:4"):
        super().__init__(name, pattern)
        self.gain, self.grad, self.r = gain, grad, r

    def forward(self, t, w):
        if (t - 1) % self.r == 0:
            self.m = top(w.detach().abs(), self.pattern).to(w)
        decayed = w * (self.m + self.gain(t - 1) * (1 - self.m))
        return decayed if self.grad == "chain" else straight_through(w, decayed)


class StructureDecay(Law):
    """Kao et al.: frame i of k begins at int(i T / k)."""

    def __init__(self, name, ladder, total):
        super().__init__(name, ladder[-1])
        self.starts = {int(i * total / len(ladder)): pattern for i, pattern in enumerate(ladder)}

    def forward(self, t, w):
        frame = self.starts[max(start for start in self.starts if start <= t - 1)]
        return straight_through(w, w * top(w.detach().abs(), frame))


class Sparse(Law):
    """Computes with the mask in the graph, so that autograd masks the gradient, and keeps what is pruned zero."""

    def begin(self, w):
        self.m = top(w.abs(), self.pattern)
        return w * self.m

    def forward(self, t, w):
        return w * self.m

    def train(self, t, w, g, hand):
        return hand(w, g) * self.m

    def mask(self, w):
        return self.m


class Gradual(Sparse):
    """Zhu and Gupta: every so often the smallest weights go, until the cubic density is met."""

    def __init__(self, name, total, every, start=1.0, pattern="2:4"):
        super().__init__(name, pattern)
        self.total, self.every, self.start = total, every, start

    def begin(self, w):
        return self._prune(0, w)

    def train(self, t, w, g, hand):
        w = super().train(t, w, g, hand)
        return self._prune(t, w) if t % self.every == 0 else w

    def mask(self, w):
        return top(w.abs(), self.pattern)

    def _prune(self, t, w):
        final = parse(self.pattern)
        m = final.m if isinstance(final, NM) else w.numel()
        density = final.density + (self.start - final.density) * (1 - t / self.total) ** 3
        groups = w.abs().reshape(-1, m)
        smallest = groups.argsort(dim=-1, stable=True)[:, : m - round(density * m)]
        self.m = torch.ones_like(groups, dtype=torch.bool).scatter(1, smallest, False).reshape(w.shape)
        return w * self.m


class AlternatingTurns(Sparse):
    """Peste et al.: dense and sparse turns; `turns` says which steps (counted from 1) are sparse."""

    def __init__(self, name, sparse_steps, pattern="2:4"):
        super().__init__(name, pattern)
        self.sparse_steps = sparse_steps

    def begin(self, w):
        self.m = torch.ones_like(w, dtype=torch.bool)
        return w

    def train(self, t, w, g, hand):
        w, before = super().train(t, w, g, hand), self.m
        if (t + 1 in self.sparse_steps) != (t in self.sparse_steps) and not self.last(t):
            now_sparse = t + 1 in self.sparse_steps
            self.m = top(w.abs(), self.pattern) if now_sparse else torch.ones_like(before)
            hand.forget(self.m != before)
        return w * self.m

    def last(self, t):
        return t >= max(self.sparse_steps)

    def mask(self, w):
        return self.m if not self.m.all() else top(w.abs(), self.pattern)


class RewiringReference(Sparse):
    """SET and RigL with plain loops: drop the smallest, then grow from whatever is not kept, in the group or in all."""

    def __init__(self, name, grow, total, every, fraction=0.3, schedule="cosine", pattern="2:4"):
        super().__init__(name, pattern)
        self.grow, self.total, self.every, self.fraction, self.schedule = grow, total, every, fraction, schedule

    def forward(self, t, w):
        return straight_through(w, w * self.m)  # G is dense

    def train(self, t, w, g, hand):
        if t % self.every:
            return hand(w, g * self.m) * self.m
        scores = g.abs()
        if self.grow == "random":
            chance = Clock(t - 1, self.total, seed=zlib.crc32(self.name.encode())).generator()
            scores = torch.rand(w.shape, generator=chance).to(w)
        before = self.m
        self.m = rewired(w, self.m, scores, self.alpha(t), parse(self.pattern))
        hand.forget(self.m & ~before)
        return w * self.m

    def alpha(self, t):
        done = (t - 1) / self.total
        return self.fraction * ((1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1 - done)


def rewired(w, mask, scores, share, pattern):
    """Return the mask after dropping and growing, entry by entry."""
    kept = mask.flatten().tolist()
    size, score = w.abs().flatten().tolist(), scores.flatten().tolist()
    ones = [i for i, one in enumerate(kept) if one]
    for i in sorted(ones, key=lambda i: (size[i], -i))[: math.floor(share * len(ones))]:
        kept[i] = False
    width = pattern.m if isinstance(pattern, NM) else len(kept)
    room = pattern.n if isinstance(pattern, NM) else len(ones)
    for start in range(0, len(kept), width):
        group = range(start, start + width)
        free = sorted((i for i in group if not kept[i]), key=lambda i: -score[i])
        for i in free[: room - sum(kept[i] for i in group)]:
            kept[i] = True
    return torch.tensor(kept).reshape(mask.shape)


class Staged(Law):
    """A law between a dense beginning and an end with its mask frozen: steps 1 to a, a + 1 to e, and from e + 1."""

    def __init__(self, name, law, a, e):
        self.law, self.a, self.e = law(name), a, e

    def begin(self, w):
        return w if self.a else self.law.begin(w)

    def forward(self, t, w):
        if t <= self.a:
            return w
        return self.law.forward(t - self.a, w) if t <= self.e else w * self.frozen

    def train(self, t, w, g, hand):
        self.t = t
        if t <= self.a or t > self.e:
            w = hand(w, g)
        else:
            w = self.law.train(t - self.a, w, g, hand)
        if t == self.a:
            w = self.law.begin(w)
        if t == self.e:
            self.frozen = self.law.mask(w)
        return w * self.frozen if t >= self.e else w

    def mask(self, w):
        if self.t < self.a:
            return top(w.abs(), self.law.pattern)
        return self.law.mask(w) if self.t < self.e else self.frozen
