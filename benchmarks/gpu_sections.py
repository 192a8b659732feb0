"""The sections of `benchmarks.gpu`: the tests, masks, layers and models that are tried on a GPU."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, LlamaConfig, PretrainedConfig

from nxm_hf.inference import cuda, to_inference
from nxm_hf.inference.algorithms import AlgorithmCache, Installation
from nxm_hf.inference.candidates import find_candidates
from nxm_hf.inference.semi_structured import CUSPARSELT, CUTLASS, Library, SemiStructuredLinear
from nxm_hf.patterns import parse
from nxm_hf.solvers import choose, gpu, reference_only, solve

ROOT = Path(__file__).parents[1]
LIBRARIES = {"CUTLASS": CUTLASS, "cuSPARSELt": CUSPARSELT}
PATTERNS = ("2:4", "1:4", "4:8", "8:16", "2:4-transposable", "4:8-transposable")
FLUSHED = 256 * 2**20  # bytes that are written between two rounds: more than any second-level cache
BUSY = 1_000_000  # cycles for which the GPU sleeps while products are launched
ROUNDS = 30
Row = dict[str, Any]
Emit = Callable[[Row], None]
Alternatives = Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Setting:
    """Where to measure, and how much.

    Args:
        device: The device.
        tiny: Whether everything is small, to try the script itself.
        out: The folder of results.
    """

    device: torch.device
    tiny: bool
    out: Path

    @property
    def sections(self) -> Path:
        """Return the folder of the sections' own files, which nobody needs afterwards."""
        return self.out.with_name(f"{self.out.name}-sections")

    @property
    def on_gpu(self) -> bool:
        """Return whether a GPU is measured."""
        return self.device.type == "cuda"

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the numbers of tokens of layers."""
        return (1, 12) if self.tiny else (4096, 1024, 128, 16, 1, 512, 8192)

    @property
    def batches(self) -> tuple[tuple[int, int], ...]:
        """Return the batches of models: sequences and their length."""
        return ((2, 6),) if self.tiny else ((32, 128), (1, 128), (8, 512))

    def configs(self) -> dict[str, PretrainedConfig]:
        """Return the configurations of the models."""
        if self.tiny:
            small: Row = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
            return {"tiny BERT": BertConfig(**small, vocab_size=50)}
        large: Row = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        llama: Row = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32)
        llama |= dict(num_key_value_heads=8, head_dim=64, vocab_size=128256, use_cache=False)
        return {"BERT-base": BertConfig(), "Llama-1B": LlamaConfig(**llama), "BERT-large": BertConfig(**large)}

    def installation(self) -> Installation:
        """Describe what algorithms are cached for."""
        return Installation.of(self.device) if self.on_gpu else Installation("no GPU", None, str(torch.__version__))


class Stopwatch:
    """Times alternatives in turns.

    Args:
        setting: Where.
        kernels_alone: Whether launches are hidden behind other work of the GPU.
    """

    def __init__(self, setting: Setting, kernels_alone: bool) -> None:
        self.on_gpu, self.kernels_alone = setting.on_gpu, kernels_alone
        self.rounds = 3 if setting.tiny else ROUNDS
        self.flushed = torch.empty(FLUSHED if self.on_gpu else 1, dtype=torch.uint8, device=setting.device)

    def time(self, alternatives: Alternatives) -> dict[str, list[float]]:
        """Return the milliseconds of each round of each alternative, after three rounds that do not count.

        Args:
            alternatives: The functions, by name.
        """
        times: dict[str, list[float]] = {name: [] for name in alternatives}
        for number in range(-3, self.rounds):
            for name, function in alternatives.items():
                spent = self._once(function)
                if number >= 0:
                    times[name].append(spent)
        return times

    def _once(self, function: Callable[[], Tensor]) -> float:
        self.flushed.zero_()
        if not self.on_gpu:
            start = time.perf_counter()
            function()
            return 1000 * (time.perf_counter() - start)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self.kernels_alone:
            torch.cuda._sleep(BUSY)
        else:
            torch.cuda.synchronize()
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))


def measure(watch: Stopwatch, alternatives: Alternatives, row: Row, emit: Emit, sizes: Mapping[str, int]) -> None:
    """Time alternatives, of which the first is dense, and write a row for each; one that fails has its error there.

    Args:
        watch: The stopwatch.
        alternatives: The functions, by name.
        row: What all rows say.
        emit: Write a row.
        sizes: The bytes of weights, by name.
    """
    outputs: dict[str, Tensor] = {}
    for name, function in alternatives.items():
        try:
            outputs[name] = function().float()
        except Exception as error:  # of any library
            emit({**row, "by": name, "error": _brief(error)})
    times = watch.time({name: alternatives[name] for name in outputs})
    first = next(iter(alternatives), "")
    for name, spent in times.items():
        low, _, high = quantiles(spent, n=4)
        more: Row = {"ms": round(median(spent), 5), "quartiles": [round(low, 5), round(high, 5)], "bytes": sizes[name]}
        if first in outputs:
            off = (outputs[name] - outputs[first]).abs().max() / outputs[first].abs().max()
            more |= {
                "speed-up": round(median(times[first]) / median(spent), 3),
                "difference": float(f"{float(off):.2g}"),
            }
        emit({**row, "by": name, **more})


def run_tests(setting: Setting, emit: Emit) -> None:
    """Run the tests that need a GPU.

    Args:
        setting: Where.
        emit: Write a row.
    """
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    for path in files:
        words = ["-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "-rs", str(path.relative_to(ROOT))]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        lines = (done.stdout + done.stderr).strip().splitlines()
        summary = lines[-1] if lines else ""
        emit(
            {"command": f"python {' '.join(words)}", "code": done.returncode, "summary": summary, "output": lines[-60:]}
        )


def run_masks(setting: Setting, emit: Emit) -> None:
    """Compare masks of kernels with those of torch, and time both.

    Args:
        setting: Where.
        emit: Write a row.
    """
    side = 64 if setting.tiny else 4096
    watch = Stopwatch(setting, kernels_alone=False)
    emit({"error": f"Triton: {gpu.BACKEND.unavailable() or ('works' if gpu.BACKEND.works() else 'does not work')}"})
    for text in PATTERNS[:1] if setting.tiny else PATTERNS:
        for dtype in (torch.float32, torch.bfloat16):
            pattern, row = parse(text), {"pattern": text, "dtype": str(dtype).removeprefix("torch.")}
            scores = torch.randn(side, side, device=setting.device).abs().to(dtype)

            def by_torch(scores: Tensor = scores, pattern: Any = pattern) -> Tensor:
                with reference_only():
                    return solve(scores, pattern)

            try:
                ours, theirs = solve(scores, pattern), by_torch()
                same = torch.equal(ours, theirs) or float(scores[ours].double().sum() / scores[theirs].double().sum())
                times = watch.time({"ours": partial(solve, scores, pattern), "torch": by_torch})
                more = {"ms": round(median(times["ours"]), 4), "torch ms": round(median(times["torch"]), 4)}
                emit({**row, "solver": choose(scores, pattern).__name__, "same as torch": same, **more})
            except Exception as error:
                emit({**row, "error": _brief(error)})
    failed = [name for name, passed in gpu.BACKEND.self_tests.items() if not passed]
    emit({"error": f"{len(gpu.BACKEND.self_tests)} self-tests ran; failed: {failed or 'none'}"})


def layer_shapes(setting: Setting) -> Iterator[tuple[str, tuple[int, int], bool]]:
    """Yield the shapes of the layers of each model, once for all models: model, (out, in), and whether it has a bias.

    Args:
        setting: Which models.
    """
    seen = set()
    for name, config in setting.configs().items():
        with torch.device("meta"):
            model = AutoModel.from_config(config)
        for module in model.modules():
            if isinstance(module, nn.Linear) and (kind := (*module.weight.shape, module.bias is not None)) not in seen:
                seen.add(kind)
                yield name, (kind[0], kind[1]), kind[2]


def pack_layer(layer: nn.Linear, library: Library, tokens: Sequence[int], setting: Setting) -> SemiStructuredLinear:
    """Return the layer as a library computes it, with the algorithms that are fastest for numbers of tokens.

    Args:
        layer: A layer that holds 2:4.
        library: The library.
        tokens: The numbers of tokens.
        setting: Where the algorithms are kept.
    """
    packed = SemiStructuredLinear(layer.weight, layer.bias, library)
    if library is CUSPARSELT:
        cuda.search_algorithms(packed, tokens, AlgorithmCache(setting.installation(), setting.sections))
    return packed


@torch.no_grad()
def run_layers(setting: Setting, emit: Emit) -> None:
    """Time the products of layers.

    Args:
        setting: Where.
        emit: Write rows.
    """
    watch = Stopwatch(setting, kernels_alone=True)
    for model, (rows, columns), bias in layer_shapes(setting):
        dense = nn.Linear(columns, rows, bias, setting.device, torch.bfloat16)
        dense.weight.data = parse("2:4").project(dense.weight.data)
        layers: dict[str, Callable[[Tensor], Tensor]] = {"dense": dense}
        sizes = {"dense": _bytes(dense), "dense, compiled": _bytes(dense)}
        row = {"model": model, "shape": f"{rows}x{columns}"}
        layers["dense, compiled"] = _compiled(dense, setting, dynamic=True)
        for name, library in LIBRARIES.items():
            try:
                packed = pack_layer(dense, library, setting.tokens, setting)
                layers[name], sizes[name] = packed, _bytes(packed)
            except Exception as error:
                emit({**row, "by": name, "error": _brief(error)})
        for count in setting.tokens:
            x = torch.randn(count, columns, device=setting.device).bfloat16()
            calls = {name: partial(layer, x) for name, layer in layers.items()}
            measure(watch, calls, {**row, "tokens": count}, emit, sizes)


@torch.no_grad()
def run_models(setting: Setting, emit: Emit) -> None:
    """Time whole models.

    Args:
        setting: Where.
        emit: Write rows.
    """
    tokens = [batch * length for batch, length in setting.batches]
    for name, config in setting.configs().items():
        with setting.device:
            dense = AutoModel.from_config(config, dtype=torch.bfloat16).eval()
        for module in dense.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = parse("2:4").project(module.weight.data)
        models = {"dense": dense}
        for text, library in LIBRARIES.items():
            try:
                models[text] = _packed_model(dense, library, tokens, setting)
            except Exception as error:
                emit({"model": name, "by": text, "error": _brief(error)})
        _report_choice(name, deepcopy(dense), setting, emit)
        _time_models(name, models, setting, emit)
        del models, dense
        torch._dynamo.reset()
        if setting.on_gpu:
            torch.cuda.empty_cache()


def _packed_model(dense: nn.Module, library: Library, tokens: Sequence[int], setting: Setting) -> nn.Module:
    """Return a copy of a model in which a library computes all layers that it takes."""
    model = deepcopy(dense)
    for candidate in find_candidates(model):
        if isinstance(candidate.module, nn.Linear) and library.kernel.takes(candidate.shape):
            model.set_submodule(candidate.name, pack_layer(candidate.module, library, tokens, setting))
    return model


def _time_models(name: str, models: Mapping[str, nn.Module], setting: Setting, emit: Emit) -> None:
    """Time the models eagerly and in CUDA graphs, and compiled for the first batch, as compiling takes longest."""
    watch = Stopwatch(setting, kernels_alone=False)
    sizes = {text: _bytes(model) for text, model in models.items()}
    for batch, length in setting.batches:
        ids = torch.randint(0, 50, (batch, length), device=setting.device)
        calls = {text: partial(_forward, model, ids) for text, model in models.items()}
        row: Row = {"model": name, "batch": f"{batch}x{length}"}
        measure(watch, calls, {**row, "run": "eager"}, emit, sizes)
        if setting.on_gpu:
            row["run"] = "CUDA graph"
            measure(watch, _graphed(calls, row, emit), row, emit, sizes)
    batch, length = setting.batches[0]
    ids = torch.randint(0, 50, (batch, length), device=setting.device)
    made = {text: _compiled(model, setting, dynamic=False) for text, model in models.items()}
    calls = {text: partial(_forward, model, ids) for text, model in made.items()}
    measure(watch, calls, {"model": name, "batch": f"{batch}x{length}", "run": "compiled"}, emit, sizes)


def _graphed(calls: Alternatives, row: Row, emit: Emit) -> dict[str, Callable[[], Tensor]]:
    """Return calls that replay CUDA graphs, without those that cannot be captured."""
    replays: dict[str, Callable[[], Tensor]] = {}
    for name, call in calls.items():
        try:
            call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = call()

            def replay(graph: torch.cuda.CUDAGraph = graph, output: Tensor = output) -> Tensor:
                graph.replay()
                return output

            replays[name] = replay
        except Exception as error:
            emit({**row, "by": name, "error": _brief(error)})
    return replays


def _report_choice(name: str, model: nn.Module, setting: Setting, emit: Emit) -> None:
    """Write what `to_inference` makes of a model, and its bytes before and after."""
    batches, lengths = ([*{each[place] for each in setting.batches}] for place in (0, 1))
    try:
        report = to_inference(model, "auto" if setting.on_gpu else "cutlass", batch=batches, length=lengths)
        sizes = {"before": report.bytes_before, "bytes": report.bytes_after}
        converted = f"to_inference: {len(report.converted)} of {len(report.layers)} layers"
        emit({"model": name, "by": converted, **sizes, "report": str(report)})
    except Exception as error:
        emit({"model": name, "by": "to_inference", "error": _brief(error)})


def _forward(model: Callable[..., Any], ids: Tensor) -> Tensor:
    output = model(input_ids=ids).last_hidden_state
    assert isinstance(output, Tensor)
    return output


def _compiled(module: nn.Module, setting: Setting, dynamic: bool) -> Callable[..., Any]:
    """Compile a module; a rehearsal does not need the compiler of kernels."""
    return torch.compile(module, backend="inductor" if setting.on_gpu else "aot_eager", dynamic=dynamic)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


SECTIONS: dict[str, Callable[[Setting, Emit], None]] = {
    "tests": run_tests,
    "masks": run_masks,
    "layers": run_layers,
    "models": run_models,
}
