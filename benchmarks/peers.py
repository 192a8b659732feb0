"""Pruning without training, beside llm-compressor: the same model, text and pattern, in turns in one process.

    python benchmarks/peers.py --model path/to/all-MiniLM-L6-v2 --text validation.parquet --other test.parquet

It needs llmcompressor beside nxm_hf, best in a separate environment. Texts are packed into sequences of full length, as
llm-compressor counts padding as tokens. It prints two errors, on the calibration text and on another one, and seconds
of CPU time. llm-compressor makes no table of errors, so `report=False` is the row to compare with it. The first error
is the squared error of a layer's outputs over the squared outputs, with the inputs of the pruned model, averaged over
layers. The second is that of the last hidden state against the dense model.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, cast

import torch
from llmcompressor import oneshot  # type: ignore[import-not-found]  # not among our dependencies
from llmcompressor.modifiers.pruning import (  # type: ignore[import-not-found]
    SparseGPTModifier,
    WandaPruningModifier,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from nxm_hf import prune, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.pruning.calibration import Batch, Sampling, make_batches
from nxm_hf.text import table

HEADINGS = ("method", "layers", "last state", "layers, other text", "last state, other text", "CPU s", "2:4")


def ours(method: str, model: PreTrainedModel, batches: list[Batch], pattern: str, **settings: Any) -> None:
    """Prune a model in place with nxm_hf.

    Args:
        method: The method.
        model: The model.
        batches: The calibration data.
        pattern: The pattern.
        settings: The settings of the method.
    """
    prune(model, pattern, method, batches, **settings)


def theirs(modifier: Callable, model: PreTrainedModel, batches: list[Batch], pattern: str, **settings: Any) -> None:
    """Prune the same layers of a model in place with llm-compressor.

    Args:
        modifier: The class of its method.
        model: The model.
        batches: The calibration data.
        pattern: The pattern.
        settings: The settings of the method.
    """
    names = [layer.name for layer in find_layers(model)]
    n, m = map(int, pattern.split(":"))
    recipe = modifier(sparsity=1 - n / m, mask_structure=pattern, targets=names, **settings)
    block = type(model.get_submodule("encoder.layer.0")).__name__
    loader = DataLoader(cast(Dataset, batches), batch_size=None)
    oneshot(model=model, dataset=loader, recipe=recipe, sequential_targets=[block], pipeline="sequential")


VARIANTS: dict[str, Callable[[PreTrainedModel, list[Batch], str], None]] = {
    "magnitude": partial(ours, "magnitude"),
    "wanda, llm-compressor": partial(theirs, WandaPruningModifier),
    "wanda": partial(ours, "wanda"),
    "wanda, report=False": partial(ours, "wanda", report=False),
    "sparsegpt, llm-compressor": partial(theirs, SparseGPTModifier),
    "sparsegpt": partial(ours, "sparsegpt"),
    "sparsegpt, report=False": partial(ours, "sparsegpt", report=False),
    "sparsegpt, damping=0.01, bias kept": partial(ours, "sparsegpt", damping=0.01, bias="keep"),
    "adaprune": partial(ours, "adaprune"),
    "alps": partial(ours, "alps"),
}


@torch.no_grad()
def errors(model: PreTrainedModel, dense: PreTrainedModel, batches: list[Batch]) -> tuple[float, float]:
    """Return the relative squared errors of the outputs of the layers, and of the last hidden state.

    Args:
        model: The pruned model.
        dense: The dense model.
        batches: The inputs.
    """
    sums: dict[str, list[float]] = {"": [0.0, 0.0]}
    handles = []
    for layer, dense_layer in zip(find_layers(model), find_layers(dense), strict=True):
        hook = partial(_compare, sums.setdefault(layer.name, [0.0, 0.0]), dense_layer.module)
        handles.append(layer.module.register_forward_hook(hook))
    for batch in batches:
        _add(sums[""], model.eval()(**batch).last_hidden_state, dense.eval()(**batch).last_hidden_state)
    for handle in handles:
        handle.remove()
    last_error, last_energy = sums.pop("")
    return sum(error / energy for error, energy in sums.values()) / len(sums), last_error / last_energy


def _compare(sums: list[float], dense: nn.Module, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    _add(sums, output, dense(inputs[0]))


def _add(sums: list[float], output: Tensor, dense_output: Tensor) -> None:
    """Add the squared error and the squared outputs of a batch."""
    sums[0] += float((output - dense_output).double().square().sum())
    sums[1] += float(dense_output.double().square().sum())


def main() -> None:
    """Run every variant in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="calibration text")
    parser.add_argument("--other", required=True, help="another text, to measure the errors on")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="rows to measure")
    parser.add_argument("--rounds", type=int, default=1, help="of all variants in turns; CPU times are medians")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dense, tokenizer = AutoModel.from_pretrained(arguments.model).eval(), AutoTokenizer.from_pretrained(arguments.model)
    sampling = Sampling(arguments.samples, 128, pack=True)
    calibration, other = (make_batches(text, dense, tokenizer, sampling) for text in (arguments.text, arguments.other))
    models: dict[str, PreTrainedModel] = {}
    seconds: dict[str, list[float]] = {name: [] for name in arguments.variants}
    for _ in range(arguments.rounds):
        for name in arguments.variants:
            model, began = deepcopy(dense), time.process_time()
            VARIANTS[name](model, calibration, arguments.pattern)
            seconds[name].append(time.process_time() - began)
            models[name] = model
    rows = []
    for name, model in models.items():
        cells = [f"{error:.4f}" for batches in (calibration, other) for error in errors(model, dense, batches)]
        median = f"{statistics.median(seconds[name]):.1f}"
        rows.append((name, *cells, median, "yes" if verify(model, arguments.pattern).ok else "no"))
    print("\n" + table(HEADINGS, rows))


if __name__ == "__main__":
    main()
