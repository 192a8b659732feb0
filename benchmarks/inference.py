"""Inference with packed weights on this CPU: layers and whole models, packed beside dense, in turns, in one process.

    python benchmarks/inference.py --threads 1 2
    python benchmarks/inference.py --threads 1 --part layers --seconds 2 --json inference.json

With one thread, times are CPU time of that thread, so other processes do not count. With several threads they are
wall-clock times. Weights are random and hold 2:4. Several layers of each shape are called one after the other, as in a
model. So weights are read from the same cache level as in a model.

Columns: `dense` is torch's fp32 product, `packed` ours; `bf16` and `bf16 packed` the same with bf16 weights. The
    ceiling of a model is its speed-up if the pruned layers took half of their time, and all else took as long as
    before.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel

from nxm_hf.inference import to_inference
from nxm_hf.inference.candidates import find_candidates
from nxm_hf.inference.sparse_linear import SparseLinear
from nxm_hf.inference.timing import Timing, time_in_turns
from nxm_hf.layers.example_inputs import example_inputs
from nxm_hf.patterns import NM

LAYERS = ((768, 768), (3072, 768), (768, 3072), (384, 1536), (4096, 4096))  # [out, in]
TOKENS = (1, 8, 64, 128, 512)
MODELS = {
    "MiniLM-L6": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "BERT-base": BertConfig(),
}
SHAPES = ((1, 16), (1, 128), (8, 128))
CACHED = 2**24  # entries of weights that are called one after the other; more than the caches of most CPUs
PATTERN = NM(2, 4)


def linear_layers(rows: int, columns: int, dtype: torch.dtype) -> list[nn.Linear]:
    """Return dense layers of one shape whose weights hold 2:4.

    Args:
        rows: The outputs of each.
        columns: The inputs of each.
        dtype: The type of the weights.
    """
    layers = []
    for _ in range(min(max(CACHED // (rows * columns), 1), 8)):
        layer = nn.Linear(columns, rows).requires_grad_(False)
        layer.weight.copy_(PATTERN.project(layer.weight))
        layers.append(layer.to(dtype))
    return layers


def calls_of(layers: Sequence[nn.Module], x: torch.Tensor) -> Callable[[], None]:
    """Return a function that calls all layers.

    Args:
        layers: The layers.
        x: Their input.
    """

    def run() -> None:
        for layer in layers:
            layer(x)

    return run


def time_layers(seconds: float) -> list[dict[str, Any]]:
    """Time every shape of layers at every number of tokens, and print a row for each.

    Args:
        seconds: How long to time each.
    """
    print("\n| weight | tokens | dense, ms | packed, ms | speed-up | bf16, ms | bf16 packed, ms | speed-up |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for out_features, in_features in LAYERS:
        ways: dict[str, Sequence[nn.Module]] = {}
        for name, dtype in (("dense", torch.float32), ("bf16", torch.bfloat16)):
            layers = linear_layers(out_features, in_features, dtype)
            ways[name] = layers
            ways[f"{name} packed"] = [SparseLinear(each.weight, each.bias, (2, 4)) for each in layers]
        for tokens in TOKENS:
            x = torch.randn(tokens, in_features)
            inputs = {name: x.bfloat16() if "bf16" in name else x for name in ways}
            timings = time_in_turns({name: calls_of(ways[name], inputs[name]) for name in ways}, seconds)
            each = {name: timing.median / len(ways[name]) for name, timing in timings.items()}
            gain, half = each["dense"] / each["dense packed"], each["bf16"] / each["bf16 packed"]
            shown = [f"{each[name] * 1e3:.3f}" for name in ("dense", "dense packed")]
            halves = [f"{each[name] * 1e3:.3f}" for name in ("bf16", "bf16 packed")]
            cells = [f"{out_features}x{in_features}", str(tokens), *shown, f"{gain:.2f}", *halves, f"{half:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
            rows.append({"weight": [out_features, in_features], "tokens": tokens, **each})
    return rows


def time_models(seconds: float, compiled: bool) -> list[dict[str, Any]]:
    """Time whole models at every shape, and print a row for each.

    Args:
        seconds: How long to time each.
        compiled: Whether to time `torch.compile` too.
    """
    print("\n| model | batch x length | dense, ms | packed, ms | speed-up | quartiles | ceiling | of memory |", end="")
    print(" compiled, ms | compiled packed, ms | speed-up |\n|---|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name, config in MODELS.items():
        for batch, length in SHAPES:
            dense, packed = BertModel(config).eval(), BertModel(config).eval()
            for model in (dense, packed):
                for candidate in find_candidates(model):
                    if ".layer." in candidate.name:
                        candidate.matrix().copy_(PATTERN.project(candidate.matrix()))
            packed.load_state_dict(dense.state_dict())
            report = to_inference(packed, batch=batch, length=length)
            inputs = example_inputs(dense, length, batch)
            share = linear_share(dense, inputs, seconds)
            ways: dict[str, Callable[..., Any]] = {"dense": dense, "packed": packed}
            if compiled:
                torch.compiler.reset()
                ways |= {f"{way} compiled": torch.compile(model, dynamic=False) for way, model in ways.items()}
            with torch.no_grad():
                timings = time_in_turns({way: partial(function, **inputs) for way, function in ways.items()}, seconds)
            row = {"model": name, "batch": batch, "length": length, "linear_share": share}
            row |= {way: timing.median for way, timing in timings.items()}
            row |= {"pruned_bytes": pruned_bytes(dense), "packed_bytes": packed_bytes(packed)}
            row |= {"packed_layers": len(report.converted)}
            rows.append(row)
            print(model_row(row, timings), flush=True)
    return rows


def model_row(row: dict[str, Any], timings: dict[str, Timing]) -> str:
    """Return the row of the table for a model at one shape.

    Args:
        row: The numbers.
        timings: The times of each way.
    """
    pairs = zip(timings["dense"].times, timings["packed"].times, strict=True)
    low, high = Timing(tuple(dense / packed for dense, packed in pairs)).spread
    cells = [row["model"], f"{row['batch']}x{row['length']}", f"{row['dense'] * 1e3:.2f}", f"{row['packed'] * 1e3:.2f}"]
    cells += [
        f"{row['dense'] / row['packed']:.2f}",
        f"{low:.2f} - {high:.2f}",
        f"{1 / (1 - row['linear_share'] / 2):.2f}",
    ]
    cells.append(f"{row['packed_bytes'] / row['pruned_bytes']:.1%}")
    if "dense compiled" in row:
        compiled, both = row["dense compiled"], row["packed compiled"]
        cells += [f"{compiled * 1e3:.2f}", f"{both * 1e3:.2f}", f"{compiled / both:.2f}"]
    else:
        cells += ["", "", ""]
    return f"| {' | '.join(cells)} |"


def linear_share(model: nn.Module, inputs: dict[str, torch.Tensor], seconds: float) -> float:
    """Return the share of a forward pass that its pruned layers take.

    Args:
        model: The dense model.
        inputs: Its inputs.
        seconds: How long to time it.
    """
    layers: list[tuple[nn.Module, torch.Tensor]] = []
    pruned = [each.module for each in find_candidates(model) if each.pattern]
    handles = [layer.register_forward_hook(lambda layer, x, y: layers.append((layer, x[0]))) for layer in pruned]
    with torch.no_grad():
        model(**inputs)
        for handle in handles:
            handle.remove()

        def all_layers() -> None:
            for layer, x in layers:
                layer(x)

        times = time_in_turns({"model": partial(model, **inputs), "layers": all_layers}, seconds)
    return min(times["layers"].median / times["model"].median, 1.0)


def pruned_bytes(model: nn.Module) -> int:
    """Return the bytes of the weights that hold a pattern.

    Args:
        model: The dense model.
    """
    return sum(each.matrix().nbytes for each in find_candidates(model) if each.pattern)


def packed_bytes(model: nn.Module) -> int:
    """Return the bytes of these weights after `to_inference`.

    Args:
        model: The packed model.
    """
    packed = [module for module in model.modules() if isinstance(module, SparseLinear)]
    return sum(each.values.nbytes + each.indices.nbytes for each in packed) + pruned_bytes(model)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time what is asked for, and print tables.

    Args:
        arguments: The command line, by default that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads (default: 1)")
    parser.add_argument(
        "--part", choices=("layers", "models", "all"), default="all", help="what to time (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row (default: 1)")
    parser.add_argument("--compiled", action="store_true", help="time torch.compile of whole models too")
    parser.add_argument("--json", type=Path, help="a file to write the numbers to")
    choices = parser.parse_args(arguments)
    torch.manual_seed(0)
    results = {}
    for threads in choices.threads:
        torch.set_num_threads(threads)
        print(f"\nThreads: {threads}. torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}.")
        parts: dict[str, Any] = {}
        if choices.part != "models":
            parts["layers"] = time_layers(choices.seconds)
        if choices.part != "layers":
            parts["models"] = time_models(choices.seconds, choices.compiled)
        results[str(threads)] = parts
    if choices.json:
        choices.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
