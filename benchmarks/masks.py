"""The time that masks take: each solver beside its peers, rewritten here, on the weights of a BERT-base.

    python benchmarks/masks.py                                    # all 72 matrices, 84.9 million weights
    python benchmarks/masks.py --share 0.1 --only 4:8-transposable --rounds 3
    python benchmarks/masks.py --device cuda

Our solver and its peers run in turns in one process, on the same random weights. Numbers are medians of CPU time on one
thread, scaled to all 84.9 million weights ("s"), and ratios of them. With more than one thread, and on a GPU, they are
wall time, which needs an otherwise idle machine. Peers that take a minute or more solve some tiles only, and are scaled
up.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product

import torch
from torch import Tensor

from nxm_hf.methods import ADMM
from nxm_hf.methods.schedules import Clock, Every
from nxm_hf.patterns import NM, Pattern, parse
from nxm_hf.solvers import reference_only, solve_many
from nxm_hf.text import table

MATRICES = {(768, 768): 48, (3072, 768): 12, (768, 3072): 12}
TOTAL = sum(rows * cols * count for (rows, cols), count in MATRICES.items())
FLOW_TILES = 400  # tiles that minimum-cost flow solves
# Contexts that decide which kernels are used; the table has a line for each.
TIERS: dict[str, Callable[[], AbstractContextManager]] = {"fast": nullcontext, "pure torch": reference_only}

Work = Callable[[], object]
Marker = Callable[[Tensor, Tensor], object]  # writes the mask of scores


@dataclass
class Item:
    """Lines of the table: our work, that of peers, and for a peer the fraction of the weights that it solves."""

    name: str
    ours: Work
    peers: dict[str, Work]
    parts: dict[str, float] = field(default_factory=dict)


class Weights:
    """Matrices, their scores, and buffers that masks and magnitudes are written into.

    Args:
        share: The fraction of all matrices to make.
        device: The device.
    """

    def __init__(self, share: float, device: str = "cpu"):
        made = torch.Generator().manual_seed(0)
        shapes = [shape for shape, count in MATRICES.items() for _ in range(max(1, round(share * count)))]
        self.weights = [torch.randn(shape, generator=made).mul_(0.02).to(device) for shape in shapes]
        self.scores = [weight.abs() for weight in self.weights]
        self.masks = [torch.zeros(shape, dtype=torch.bool, device=device) for shape in shapes]
        self.out = [torch.zeros(shape, device=device) for shape in shapes]
        self.scale = TOTAL / sum(weight.numel() for weight in self.weights)

    def each(self, mark: Marker) -> Work:
        """Return work that writes the mask of each matrix.

        Args:
            mark: Writes one mask.
        """
        return lambda: [mark(scores, mask) for scores, mask in zip(self.scores, self.masks, strict=True)]

    def solved(self, pattern: Pattern) -> Work:
        """Return work that solves all masks with nxm_hf.

        Args:
            pattern: The pattern.
        """
        return lambda: solve_many(self.scores, pattern, self.masks)

    def magnitudes(self) -> None:
        """Read all weights once, which is the least that any mask costs."""
        for weight, out in zip(self.weights, self.out, strict=True):
            torch.abs(weight, out=out)


# Peers


def by_sort_and_scatter(n: int, m: int) -> Marker:
    """Return a marker that sorts each group of m, and keeps its first n.

    Args:
        n: How many entries are kept.
        m: The size of a group.
    """

    def mark(scores: Tensor, mask: Tensor) -> None:
        order = scores.view(-1, m).argsort(dim=1, descending=True)
        mask.view(-1, m).zero_().scatter_(1, order[:, :n], True)

    return mark


def by_topk_and_scatter(n: int, m: int) -> Marker:
    """Return a marker that keeps the n highest of each group of m, by topk.

    Args:
        n: How many entries are kept.
        m: The size of a group.
    """

    def mark(scores: Tensor, mask: Tensor) -> None:
        mask.view(-1, m).zero_().scatter_(1, scores.view(-1, m).topk(n, dim=1).indices, True)

    return mark


def by_kthvalue(scores: Tensor, mask: Tensor) -> None:
    """Write an unstructured mask of density one half: keep all scores that reach the median.

    Args:
        scores: The scores.
        mask: Where to write the mask.
    """
    torch.ge(scores, scores.flatten().kthvalue(scores.numel() // 2 + 1).values, out=mask)


def cut(scores: Tensor, m: int) -> Tensor:
    """Return the tiles of a matrix, [tiles, m, m].

    Args:
        scores: The matrix.
        m: The side of a tile.
    """
    return scores.unflatten(1, (-1, m)).unflatten(0, (-1, m)).transpose(1, 2).reshape(-1, m, m)


def by_all_masks(n: int, m: int) -> Marker:
    """Return a marker that multiplies all tiles with all transposable masks of a tile, and takes the best.

    Args:
        n: How many entries of each row and column are kept.
        m: The side of a tile.
    """
    lines = [[float(column in kept) for column in range(m)] for kept in combinations(range(m), n)]
    candidates = torch.tensor(list(product(lines, repeat=m)))
    candidates = candidates[(candidates.sum(1) == n).all(1)].flatten(1)

    def mark(scores: Tensor, mask: Tensor) -> None:
        masks = candidates.to(scores.device)
        best = masks.bool().view(-1, m, m)[(cut(scores, m).flatten(1) @ masks.T).argmax(1)]
        height, width = scores.shape[0] // m, scores.shape[1] // m
        mask.copy_(best.view(height, width, m, m).transpose(1, 2).reshape(scores.shape))

    return mark


def by_flow(scores: Tensor, n: int, m: int) -> Work | None:
    """Return work that solves tiles by the minimum-cost flow of OR-tools.

    Args:
        scores: The matrix, of which the first tiles are solved.
        n: How many entries of each row and column are kept.
        m: The side of a tile.

    Returns:
        The work; None if OR-tools is not installed.
    """
    try:
        import numpy
        from ortools.graph.python.min_cost_flow import SimpleMinCostFlow  # type: ignore[import-not-found]  # optional
    except ImportError:
        return None
    tiles = cut(scores, m)[:FLOW_TILES]
    values = (tiles / tiles.amax((1, 2), keepdim=True) * 2**30).round().long().flatten(1).cpu().numpy()
    row, col = numpy.divmod(numpy.arange(m * m), m)
    supply, capacity = numpy.repeat([n, -n], m), numpy.ones(m * m, dtype=numpy.int64)

    def act() -> None:
        for tile in values:
            flow = SimpleMinCostFlow()
            arcs = flow.add_arcs_with_capacity_and_unit_cost(row, m + col, capacity, -tile)
            flow.set_nodes_supplies(numpy.arange(2 * m), supply)
            if flow.solve() != flow.OPTIMAL:
                raise RuntimeError("OR-tools found no flow for a tile; n <= m should always have one.")
            flow.flows(arcs)

    return act


class NaiveADMM:
    """The update of ADMM as papers write it, with a mask by topk and two copies of the weights."""

    def __init__(self, data: Weights, n: int, m: int):
        self.data, self.mark = data, by_topk_and_scatter(n, m)
        self.duals = [torch.randn_like(weight) * 0.01 for weight in data.weights]
        self.sparse = [torch.zeros_like(weight) for weight in data.weights]

    def __call__(self) -> None:
        for i, (weight, mask) in enumerate(zip(self.data.weights, self.data.masks, strict=True)):
            target = weight + self.duals[i]
            self.mark(target.abs(), mask)
            self.sparse[i] = target * mask
            self.duals[i] = target - self.sparse[i]


class OurADMM:
    """The update of the method `ADMM` of nxm_hf."""

    def __init__(self, data: Weights, pattern: Pattern):
        self.method, self.data, self.clock = ADMM(pattern, update=Every(1)), data, Clock(1, 2)
        self.states = [self.method.init(weight, self.clock) for weight in data.weights]

    def __call__(self) -> None:
        for weight, state in zip(self.data.weights, self.states, strict=True):
            self.method.after_step(weight, state, self.clock)


# The table


def items(data: Weights) -> Iterator[tuple[str, Callable[[], Item]]]:
    """Yield the name of each item, and a function that makes it.

    Args:
        data: The weights.
    """
    for n, m in ((2, 4), (1, 4), (4, 8), (8, 16), (16, 32)):
        yield f"{n}:{m}", partial(plain, data, NM(n, m))
    yield "ADMM 2:4", lambda: Item("ADMM 2:4", OurADMM(data, NM(2, 4)), {"naive + topk": NaiveADMM(data, 2, 4)})
    for n, m in ((2, 4), (4, 8), (8, 16), (16, 32)):
        yield f"{n}:{m}-transposable", partial(transposable, data, n, m)
    half = parse("unstructured:0.5")
    yield str(half), lambda: Item(str(half), data.solved(half), {"kthvalue": data.each(by_kthvalue)})


def plain(data: Weights, pattern: NM) -> Item:
    """Return the item of N:M, beside a sort, a topk, and one reading of the weights.

    Args:
        data: The weights.
        pattern: The pattern.
    """
    sort, topk = by_sort_and_scatter(pattern.n, pattern.m), by_topk_and_scatter(pattern.n, pattern.m)
    peers = {"abs(out=)": data.magnitudes, "argsort + scatter": data.each(sort), "topk + scatter": data.each(topk)}
    return Item(str(pattern), data.solved(pattern), peers)


def transposable(data: Weights, n: int, m: int) -> Item:
    """Return the item of transposable N:M, beside the product with all masks, or minimum-cost flow.

    Args:
        data: The weights.
        n: How many entries of each row and column are kept.
        m: The side of a tile.
    """
    pattern = parse(f"{n}:{m}-transposable")
    if m == 4:
        return Item(str(pattern), data.solved(pattern), {"90-pattern matmul": data.each(by_all_masks(n, m))})
    flow = by_flow(data.scores[0], n, m)
    part = min(FLOW_TILES * m * m, data.scores[0].numel()) * data.scale / TOTAL
    return Item(str(pattern), data.solved(pattern), {"OR-tools flow": flow} if flow else {}, {"OR-tools flow": part})


def in_turns(works: list[Work], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Return the median seconds of each work.

    Args:
        works: What to time. Their order is reversed from round to round.
        rounds: How many rounds count; one more is run first.
        clock: Returns the time.
    """
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for i in sorted(range(len(works)), reverse=bool(number % 2)):
            begin = clock()
            works[i]()
            times[i].append(clock() - begin)
    return [statistics.median(seconds[1:]) for seconds in times]


def measure(item: Item, data: Weights, rounds: int, clock: Callable[[], float]) -> list[tuple[str, ...]]:
    """Return the lines of an item: one for each tier and peer.

    Args:
        item: The item.
        data: The weights.
        rounds: How many rounds count.
        clock: Returns the time.
    """

    def within(tier: Callable[[], AbstractContextManager]) -> Work:
        def act() -> None:
            with tier():
                item.ours()

        return act

    medians = in_turns([*map(within, TIERS.values()), *item.peers.values()], rounds, clock)
    seconds = [median * data.scale for median in medians]
    peer_seconds = zip(item.peers, seconds[len(TIERS) :], strict=True)
    peers = {name: theirs / item.parts.get(name, 1) for name, theirs in peer_seconds}
    rows: list[tuple[str, ...]] = []
    for tier, ours in zip(TIERS, seconds, strict=False):
        for peer, theirs in peers.items() or [("-", float("nan"))]:
            rows.append((item.name, tier, f"{ours:.3f}", peer, f"{theirs:.3f}", f"{theirs / ours:.2f}x"))
    return rows


def finished() -> float:
    """Wait until the GPU has finished its work, and return the time."""
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure all items and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the weights to use")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--device", default="cpu", help="cuda measures the wall time of the GPU")
    parser.add_argument("--threads", type=int, default=1, help="more than one measures wall time")
    parser.add_argument("--only", nargs="+", help="names of the items to measure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    if options.device != "cpu":
        clock = finished
    data, rows = Weights(options.share, options.device), []
    for name, make in items(data):
        if options.only is None or name in options.only:
            rows += measure(make(), data, options.rounds, clock)
            print(f"{name} done", flush=True)
    print(table(("item", "tier", "s", "peer", "s of peer", "peer over ours"), rows))


if __name__ == "__main__":
    main()
