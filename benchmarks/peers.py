"""Pruning without training beside llm-compressor: the same model, text and pattern, in turns in one process.

    python benchmarks/peers.py --model path/to/all-MiniLM-L6-v2 --text validation.parquet --other test.parquet

It needs llmcompressor beside nxm_hf, best in an environment of its own. Texts are packed into sequences of full length,
as llm-compressor counts padding as tokens. Printed are, on the text that was calibrated with and on another one, the
squared error of the outputs of the layers as a share of these outputs (mean over layers, each with the inputs that the
pruned model gives it) and that of the last hidden state against the dense model's, and seconds of CPU time.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer

from nxm_hf import prune, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.pruning.calibration import Batch, Sampling, make_batches
from nxm_hf.text import table

HEADINGS = ("method", "layers", "last state", "layers, other text", "last state, other text", "CPU s", "2:4")


def ours(method: str, model: nn.Module, batches: list[Batch], pattern: str, **settings) -> None:
    """Prune by nxm_hf."""
    prune(model, pattern, method, batches, **settings)


def theirs(modifier: Callable, model: nn.Module, batches: list[Batch], pattern: str, **settings) -> None:
    """Prune by llm-compressor, the same layers."""
    names = [layer.name for layer in find_layers(model)]
    kept, of = map(int, pattern.split(":"))
    recipe = modifier(sparsity=1 - kept / of, mask_structure=pattern, targets=names, **settings)
    block = type(model.encoder.layer[0]).__name__
    loader = DataLoader(batches, batch_size=None)
    oneshot(model=model, dataset=loader, recipe=recipe, sequential_targets=[block], pipeline="sequential")


ARMS = {
    "magnitude": partial(ours, "magnitude"),
    "wanda, llm-compressor": partial(theirs, WandaPruningModifier),
    "wanda": partial(ours, "wanda"),
    "sparsegpt, llm-compressor": partial(theirs, SparseGPTModifier),
    "sparsegpt": partial(ours, "sparsegpt"),
    "sparsegpt, damping=0.01, bias kept": partial(ours, "sparsegpt", damping=0.01, bias="keep"),
    "adaprune": partial(ours, "adaprune"),
    "alps": partial(ours, "alps"),
}


@torch.no_grad()
def errors(model: nn.Module, dense: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """Of the outputs of the layers, and of the last hidden state, as shares."""
    sums: dict[str, list[float]] = {"": [0.0, 0.0]}
    handles = []
    for layer, right in zip(find_layers(model), find_layers(dense), strict=True):
        hook = partial(_compare, sums.setdefault(layer.name, [0.0, 0.0]), right.module)
        handles.append(layer.module.register_forward_hook(hook))
    for batch in batches:
        _add(sums[""], model.eval()(**batch).last_hidden_state, dense.eval()(**batch).last_hidden_state)
    for handle in handles:
        handle.remove()
    whole = sums.pop("")
    return sum(lost / all_of_it for lost, all_of_it in sums.values()) / len(sums), whole[0] / whole[1]


def _compare(sums: list[float], right: nn.Linear, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    _add(sums, output, right(inputs[0]))


def _add(sums: list[float], found: Tensor, right: Tensor) -> None:
    sums[0] += float((found - right).double().square().sum())
    sums[1] += float(right.double().square().sum())


def main() -> None:
    """Every arm in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="to calibrate with")
    parser.add_argument("--other", required=True, help="text that is not calibrated with")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--samples", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dense, tokenizer = AutoModel.from_pretrained(arguments.model).eval(), AutoTokenizer.from_pretrained(arguments.model)
    sampling = Sampling(arguments.samples, 128, pack=True)
    seen, other = (make_batches(text, dense, tokenizer, sampling) for text in (arguments.text, arguments.other))
    rows = []
    for name, arm in ARMS.items():
        model, began = deepcopy(dense), time.process_time()
        arm(model, seen, arguments.pattern)
        seconds = time.process_time() - began
        found = [f"{error:.4f}" for batches in (seen, other) for error in errors(model, dense, batches)]
        rows.append((name, *found, f"{seconds:.1f}", "yes" if verify(model, arguments.pattern).ok else "no"))
        print("  ".join(rows[-1]), flush=True)
    print("\n" + table(HEADINGS, rows))


if __name__ == "__main__":
    main()
