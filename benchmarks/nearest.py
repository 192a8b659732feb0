"""What masks of squares gain over masks of magnitudes: mask bits, distances, and output errors of one-shot pruners.

    python benchmarks/nearest.py
    python benchmarks/nearest.py --draws 3 --pattern 4:8-transposable --method alps

The first table compares `pattern.largest` with `pattern.nearest` on weights of normal random numbers. The distance is
the norm of what is pruned over the norm of the weight. The second table prunes layers of random weights, with inputs
that are correlated, by `pattern.nearest` and with `pattern.largest` in its place. The error is that of the outputs,
and a draw is better if its error is smaller with squares.
"""

import argparse
import time
from statistics import fmean
from unittest.mock import patch

import torch
from torch import Tensor

from nxm_hf import pruners
from nxm_hf.patterns import Pattern, parse
from nxm_hf.pruners import Inputs, output_error
from nxm_hf.text import table

PATTERNS = ("2:4-transposable", "4:8-transposable", "8:16-transposable", "block:4:0.5", "block:4x4:0.5")
METHODS = ("wanda", "sparsegpt", "alps")
OUT, IN, TOKENS, SIDE, REPEATS = 64, 128, 512, 1536, 9


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=9)
    parser.add_argument("--pattern", action="append", help="default: " + ", ".join(PATTERNS))
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = options.pattern or PATTERNS
    print(table(("pattern", "bits that differ", "distance", "nearest", "ms", "nearest"), list(map(distances, texts))))
    rows = [errors(text, method, options.draws) for text in texts for method in options.method or METHODS]
    print(table(("pattern", "method", "error", "by squares", "change", "better draws"), rows))


def distances(text: str) -> tuple[str, ...]:
    """Return a row of the first table.

    Args:
        text: The pattern.
    """
    pattern, weight = parse(text), _normal(SIDE, SIDE, seed=0)
    masks, milliseconds = [], []
    for solve in (pattern.largest, pattern.nearest):
        seconds = []
        for _ in range(REPEATS):  # the first compiles kernels
            began = time.perf_counter()
            mask = solve(weight)
            seconds.append(time.perf_counter() - began)
        masks.append(mask)
        milliseconds.append(f"{1000 * min(seconds):.1f}")
    lost = [f"{float((weight * ~mask).norm() / weight.norm()):.4f}" for mask in masks]
    return text, f"{float((masks[0] ^ masks[1]).float().mean()):.1%}", *lost, *milliseconds


def errors(text: str, method: str, draws: int) -> tuple[str, ...]:
    """Return a row of the second table.

    Args:
        text: The pattern.
        method: The pruner.
        draws: How many layers to prune.
    """
    before = [output_error_of(text, method, seed, squares=False) for seed in range(draws)]
    after = [output_error_of(text, method, seed, squares=True) for seed in range(draws)]
    better = sum(new < old for old, new in zip(before, after, strict=True))
    change = fmean(new / old - 1 for old, new in zip(before, after, strict=True))
    return text, method, f"{fmean(before):.4f}", f"{fmean(after):.4f}", f"{change:+.1%}", f"{better} of {draws}"


def output_error_of(text: str, method: str, seed: int, squares: bool) -> float:
    """Prune a random layer and return the error of its outputs.

    Args:
        text: The pattern.
        method: The pruner.
        seed: The seed of the layer and its inputs.
        squares: Use the masks of squares; otherwise those of magnitudes.
    """
    weight, mixed = _normal(OUT, IN, seed=3 * seed), _normal(IN, IN, seed=3 * seed + 1) / IN**0.5
    x = _normal(TOKENS, IN, seed=3 * seed + 2) @ (mixed + torch.diag(torch.linspace(0.1, 1, IN))) + 0.3
    inputs = Inputs(x.T @ x, x.mean(0), len(x), x)
    rule = Pattern.nearest if squares else Pattern.largest
    with patch.object(Pattern, "nearest", rule):
        pruned = pruners.make(method)(weight, None, inputs, parse(text))
    return output_error(weight, pruned.weight, inputs)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    main()
