"""The metric against the similarity of ADMM's masks, beside the strength from which masks can come to rest.

    cd benchmarks/glue
    python compare.py --tasks demo --recipes dense asp "admm rho=1e-3" "admm rho=1e-1" --output_dir out/rho
    cd ../..
    python -m benchmarks.admm_similarity --comparison benchmarks/glue/out/rho --output similarity.svg

It draws Fig. 3 of NxMTransformer for a finished comparison. Each `admm rho=...` is a point: its mean mask similarity
from one ADMM iteration to the next, and its metric. The second panel has both against rho. Its vertical lines are
thresholds of theory: a group of weights has a fixed point only if rho is at least max |g pruned| / min |w kept|. Here
g is the mean gradient, clipped as in training. They are quantiles of that ratio over all groups, with the initial
weights of the training, or those of `--weights`. With a model that `asp` has trained they are the strengths at which
its masks would rest.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.glue.comparison.example_scripts import TASKS, run_glue
from benchmarks.glue.comparison.recipe_text import read_recipe
from benchmarks.glue.comparison.records import trial_of
from benchmarks.glue.comparison.results import ComparisonResults, ModelResults, Runs
from benchmarks.glue.comparison.statistics import deviation, mean
from benchmarks.glue.comparison.tables import format_number, table
from nxm_hf.layers.find import find_layers
from nxm_hf.patterns import NM, parse

SHARES = (0.5, 0.9, 0.99)


def strengths(results: ModelResults, task: str) -> dict[float, Runs]:
    """Return the variants of a task that are ADMM with a number for rho, by rho.

    Args:
        results: The results of a model.
        task: The task.
    """
    found = {}
    for runs in results.of(task):
        settings = runs.first["config"]["settings"]
        if runs.recipe == "admm" and {*settings} == {"rho"} and isinstance(settings["rho"], int | float):
            found[float(settings["rho"])] = runs
    return dict(sorted(found.items()))


def ratios(grad: torch.Tensor, weight: torch.Tensor, pattern: NM) -> torch.Tensor:
    """Return max |g pruned| / min |w kept| of each group.

    Args:
        grad: The gradient.
        weight: The weight.
        pattern: The pattern.
    """
    mask = pattern.mask(weight.abs()).view(-1, pattern.m)
    pruned = grad.abs().view(-1, pattern.m).masked_fill(mask, 0).amax(-1)
    return pruned / weight.abs().view(-1, pattern.m).masked_fill(~mask, torch.inf).amin(-1)


def thresholds(runs: Runs, options: argparse.Namespace) -> list[float]:
    """Return the quantiles `SHARES` of the ratios, with the rows that a variant is trained on.

    Args:
        runs: The variant.
        options: The options of the command line.
    """
    trial = trial_of(runs.first)
    pattern = parse(str(read_recipe(trial.recipe).pattern))
    if not isinstance(pattern, NM):
        raise SystemExit(f"Thresholds are those of N:M patterns; the pattern is {pattern}.")
    trial = replace(trial, model=str(options.weights or trial.model))
    trainer, _, _ = run_glue.make_trainer(run_glue.read_options(trial.command_line(options.comparison / "unused")))
    model: Any = trainer.model
    model.train()
    weights = [layer.weight for layer in find_layers(model)]
    means = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
    for batch in islice(trainer.get_train_dataloader(), options.batches):
        model.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        for total, weight in zip(means, weights, strict=True):
            total += weight.grad / options.batches
    found = torch.cat([ratios(g, weight.detach(), pattern) for g, weight in zip(means, weights, strict=True)])
    return [float(found.quantile(share)) for share in SHARES]


def draw(variants: dict[float, Runs], results: ModelResults, task: str, limits: Sequence[float], output: Path) -> None:
    """Write the figure.

    Args:
        variants: ADMM by rho.
        results: The results of the model, for its dense and its masked training.
        task: The task.
        limits: The thresholds.
        output: The file, of any type that matplotlib writes.
    """
    metric, similar = TASKS[task].best, [runs.similarity for runs in variants.values()]
    scores = [mean(runs.scores) for runs in variants.values()]
    from matplotlib import rc_context  # which `pip install nxm-hf[report]` brings
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "similarity", "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        bars = [deviation(runs.scores) for runs in variants.values()]
        left.errorbar(similar, scores, yerr=bars if bars[0] == bars[0] else None, fmt="o-", capsize=3)
        for number, (rho, x, y) in enumerate(zip(variants, similar, scores, strict=True)):
            above = 5 if number % 2 == 0 else -12  # so that the labels of two close points stay apart
            left.annotate(f"{rho:g}", (x, y), textcoords="offset points", xytext=(-6, above), ha="right")
        for name, style in (("dense", "--"), ("asp", ":")):
            if runs := results.find(task, name):
                left.axhline(mean(runs.scores), linestyle=style, color="tab:gray", label=name)
        left.set(xlabel="mask similarity between ADMM iterations; labels: rho", ylabel=metric)
        left.legend()
        right.semilogx(list(variants), similar, "s-", color="tab:orange", label="similarity (left)")
        for share, limit in zip(SHARES, limits, strict=True):
            right.axvline(limit, linestyle="--", color="tab:gray")
            right.annotate(f"{share:.0%}", (limit, 0.03), xycoords=("data", "axes fraction"), rotation=90)
        right.set(xlabel="rho; lines: this share of groups has a fixed point", ylabel="similarity")
        other: Any = right.twinx()
        other.semilogx(list(variants), scores, "o-", color="tab:blue", label=f"{metric} (right)")
        other.set_ylabel(metric)
        handles = [*right.get_lines()[:1], *other.get_lines()]
        names = [str(line.get_label()) for line in handles]
        right.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


def main(words: Sequence[str] | None = None) -> None:
    """Write the figure, and print its numbers.

    Args:
        words: The words of the command line; by default those of this process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparison", type=Path, required=True, help="an output directory of compare.py")
    parser.add_argument("--output", type=Path, required=True, help="the figure, such as similarity.svg")
    parser.add_argument("--task", default="demo")
    parser.add_argument("--weights", help="the model to measure thresholds at (default: the one that is trained)")
    parser.add_argument("--batches", type=int, default=40, help="for the thresholds (default: %(default)s)")
    options = parser.parse_args(words)
    results = ComparisonResults.read(options.comparison).models[0]
    variants = strengths(results, options.task)
    if len(variants) < 2:
        raise SystemExit(f"{options.comparison} has fewer than two 'admm rho=...' to draw; run compare.py with some.")
    limits = thresholds(next(iter(variants.values())), options)
    draw(variants, results, options.task, limits, options.output)
    rows = [
        [f"{rho:g}", str(len(runs.scores)), format_number(runs.similarity), format_number(mean(runs.scores))]
        for rho, runs in variants.items()
    ]
    print(table(["rho", "seeds", "similarity", TASKS[options.task].best], rows))
    shown = ", ".join(f"{share:.0%} {limit:.1e}" for share, limit in zip(SHARES, limits, strict=True))
    print(f"\nShare of groups with a fixed point, and the least rho for it: {shown}.")


if __name__ == "__main__":
    main()
