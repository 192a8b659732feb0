"""The time of each call of a pattern on one weight, over that of `torch.abs` into memory that is there already.

    python benchmarks/projections.py
    python benchmarks/projections.py --pattern 2:4-transposable --rounds 20

`solve` is `solve_many` on given scores, the floor of the others. All calls run in turns on one thread. Numbers are
medians of CPU time. `clone` is the cost of new memory, which `project` pays without `out=`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import solve_many
from nxm_hf.text import table

PATTERNS = (
    "2:4",
    "2:4-transposable",
    "4:8-transposable",
    "8:16-transposable",
    "16:32-transposable",
    "unstructured:0.5",
)
CALLS = ("solve", "largest", "nearest", "project", "project(out=)")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", action="append", help="default: " + ", ".join(PATTERNS))
    parser.add_argument("--size", type=int, default=3072, help="rows and columns of the weight")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = measure(options.pattern or PATTERNS, options.size, options.rounds)
    unit = times["abs", ""]
    print(f"abs {1000 * unit:.2f} ms, clone {times['clone', ''] / unit:.2f}")
    rows = [
        (text, *(f"{times[call, text] / unit:.2f}" for call in CALLS))
        for text in dict.fromkeys(t for _, t in times if t)
    ]
    print(table(("pattern", *CALLS), rows))


def measure(patterns: list[str] | tuple[str, ...], size: int, rounds: int) -> dict[tuple[str, str], float]:
    """Return the median CPU time of each call, by its name and the pattern.

    Args:
        patterns: The patterns.
        size: Rows and columns of the weight.
        rounds: Calls of each, in turns, after a first one that compiles kernels.
    """
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    out, mask, scores = torch.empty_like(weight), torch.empty(size, size, dtype=torch.bool), weight.abs()
    calls: dict[tuple[str, str], Callable[[], object]] = {
        ("abs", ""): partial(torch.abs, weight, out=out),
        ("clone", ""): weight.clone,
    }
    for text in patterns:
        pattern = parse(text)
        calls["solve", text] = partial(solve_many, [scores], pattern, [mask])
        calls["largest", text] = partial(pattern.largest, weight)
        calls["nearest", text] = partial(pattern.nearest, weight)
        calls["project", text] = partial(pattern.project, weight)
        calls["project(out=)", text] = partial(pattern.project, weight, out=out)
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            began = time.thread_time()
            call()
            seconds[name].append(time.thread_time() - began)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


if __name__ == "__main__":
    main()
