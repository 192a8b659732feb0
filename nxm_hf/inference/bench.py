"""Bench: time a sparse model on this machine, dense beside packed, layer by layer and as a whole."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.inference.backends import backends_for
from nxm_hf.inference.candidates import Candidate, find_candidates
from nxm_hf.inference.conversion import SAMPLE, TOLERANCE, to_inference
from nxm_hf.inference.timing import Timing, time_in_turns
from nxm_hf.layers.example_inputs import example_inputs
from nxm_hf.layers.modules import eval_no_grad
from nxm_hf.packing import PackedLinear
from nxm_hf.text import table

DENSE, COMPILED = "dense", "dense compiled"
WHOLE_MODEL = "whole model"


@dataclass(frozen=True)
class Measurement:
    """The times of one subject at one shape, for each way to compute it.

    Args:
        subject: The shape and pattern of a layer, or "whole model".
        batch: Sequences of a batch.
        length: Tokens of a sequence.
        timings: The times of each way: "dense", perhaps "dense compiled", and the packed ones.
        errors: The largest difference from the dense outputs, as a share of the largest output, of each other way.
    """

    subject: str
    batch: int
    length: int
    timings: Mapping[str, Timing]
    errors: Mapping[str, float]

    @property
    def tokens(self) -> int:
        """Return the tokens of a batch."""
        return self.batch * self.length

    @property
    def packed(self) -> list[str]:
        """Return the packed ways."""
        return [name for name in self.timings if name not in (DENSE, COMPILED)]

    def speedup(self, name: str) -> float:
        """Return the speed-up of a way over dense, of the medians.

        Args:
            name: The way.
        """
        return self.timings[DENSE].median / self.timings[name].median

    def spread(self, name: str) -> tuple[float, float]:
        """Return the first and the third quartile of the speed-up, over the rounds.

        Args:
            name: The way.
        """
        pairs = zip(self.timings[DENSE].times, self.timings[name].times, strict=True)
        first, _, third = quantiles([dense / other for dense, other in pairs], n=4)
        return first, third

    @property
    def verdict(self) -> str:
        """Return in words the speed-up of the best packed form over the best dense one."""
        if not self.packed:
            return "nothing to pack"
        best = min(self.packed, key=lambda name: self.timings[name].median)
        rivals = [self.timings[name].median for name in (DENSE, COMPILED) if name in self.timings]
        gain = min(rivals) / self.timings[best].median
        if gain > 1:
            return f"{best} is faster: {gain:.2f}x"
        return f"{best} is no faster: {gain:.2f}x" if gain >= TOLERANCE else f"{best} is slower: {gain:.2f}x"


@dataclass(frozen=True)
class Bench:
    """The measurements of a model. It prints as tables.

    Args:
        name: The name of the model.
        device: The device, as text.
        dtype: The type of its weights, as text.
        threads: The threads of torch.
        layers: The measurements of its kinds of layers.
        model: The measurements of the whole model.
        bytes_dense: The bytes of the dense model's weights.
        bytes_packed: The bytes after `to_inference`.
        notes: Remarks, such as why something was not measured.
    """

    name: str
    device: str
    dtype: str
    threads: int
    layers: tuple[Measurement, ...]
    model: tuple[Measurement, ...]
    bytes_dense: int
    bytes_packed: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as a dict that fits a JSON file. Times are in seconds."""
        rows = [_as_dict(measurement) for measurement in (*self.layers, *self.model)]
        facts = {"name": self.name, "device": self.device, "dtype": self.dtype, "threads": self.threads}
        memory = {"bytes_dense": self.bytes_dense, "bytes_packed": self.bytes_packed}
        return {**facts, **memory, "notes": list(self.notes), "measurements": rows}

    def __str__(self) -> str:
        header = ("what", "batch", "length", "way", "ms", "quartiles", "speed-up", "error", "verdict")
        rows = [row for measurement in (*self.layers, *self.model) for row in _rows(measurement)]
        dense, packed = (f"{size / 2**20:.1f} MiB" for size in (self.bytes_dense, self.bytes_packed))
        memory = f"Weights take {packed} after to_inference, and {dense} dense."
        title = f"{self.name}: {self.dtype} on {self.device}, {self.threads} threads"
        return "\n".join([title, table(header, rows), memory, *self.notes])


def bench(
    model: nn.Module,
    batch: Sequence[int] = (1, 8),
    length: Sequence[int] = (16, 128),
    compiled: bool = True,
    seconds: float = 1.0,
    name: str = "",
) -> Bench:
    """Time a sparse model dense, compiled and packed, in turns, on its device and in its type.

    Args:
        model: A model of transformers, whose weights hold 2:4 or another n:4 or n:8 pattern. It is left as it was.
        batch: Numbers of sequences in a batch.
        length: Tokens of a sequence.
        compiled: Whether to time `torch.compile` of the whole model too, where it works.
        seconds: How long to time each subject at each shape, in about.
        name: The name of the model in the result; by default that of its class.

    Returns:
        The measurements.

    Raises:
        ValueError: If a length is longer than what the model reads, or nothing in it can be packed.
    """
    shapes = [(rows, tokens) for rows in batch for tokens in length]
    inputs = [_inputs(model, rows, tokens) for rows, tokens in shapes]
    dense = _dense_copy(model)
    found = find_candidates(dense)
    reasons = {each.name: backends_for("auto", each)[1] for each in found}
    candidates = [each for each in found if reasons[each.name] is None]
    if not candidates:
        sparse = [each for each in found if each.pattern is not None]  # a head, say, is meant to be dense
        why = "; ".join(sorted({str(reasons[each.name]) for each in sparse or found}))
        raise ValueError(f"No layer of this {type(model).__name__} can be packed: {why}.")
    first = candidates[0]
    with eval_no_grad(dense):
        layers = tuple(_layer_measurements(candidates, shapes, seconds))
        packed = copy.deepcopy(dense)
        report = to_inference(packed, batch=batch, length=length)
        notes: list[str] = []
        whole = tuple(
            _model_measurement(dense, packed, shape, each, compiled, seconds, notes)
            for shape, each in zip(shapes, inputs, strict=True)
        )
    device = torch.cuda.get_device_name(first.device) if first.device.type == "cuda" else first.device.type
    dtype = str(first.dtype).removeprefix("torch.")
    sizes = report.bytes_before, report.bytes_after
    title = name or type(model).__name__
    return Bench(title, device, dtype, torch.get_num_threads(), layers, whole, *sizes, tuple(dict.fromkeys(notes)))


def _dense_copy(model: nn.Module) -> nn.Module:
    """Return the model, or a copy with dense layers if its own are packed."""
    if not any(isinstance(module, PackedLinear) for module in model.modules()):
        return model
    copied = copy.deepcopy(model)
    for each in find_candidates(copied):
        copied.set_submodule(each.name, each.dense())
    return copied


def _inputs(model: Any, rows: int, tokens: int) -> dict[str, Tensor]:
    """Return inputs of a shape, or raise if the model cannot read so many tokens."""
    inputs = example_inputs(model, tokens, rows)
    ids = inputs.get("input_ids")
    if ids is not None and ids.shape[1] != tokens:
        raise ValueError(f"length={tokens} is more than the {ids.shape[1]} tokens that this model reads; write less.")
    return inputs


def _layer_measurements(
    candidates: Sequence[Candidate], shapes: Sequence[tuple[int, int]], seconds: float
) -> Iterator[Measurement]:
    """Time each kind of layer at each number of tokens."""
    kinds: dict[tuple[object, ...], list[Candidate]] = {}
    for candidate in candidates:
        kinds.setdefault(candidate.kind, []).append(candidate)
    counts = sorted({rows * tokens for rows, tokens in shapes})
    for group in kinds.values():
        first, sample = group[0], group[:SAMPLE]
        ways = {DENSE: [each.dense() for each in sample]}
        ways |= {by.name: [by.build(each, counts) for each in sample] for by in backends_for("auto", first)[0]}
        subject = f"{first.shape[0]}x{first.shape[1]} {first.pattern_text}, {len(group)} layers"
        for rows, tokens in {rows * tokens: (rows, tokens) for rows, tokens in shapes}.values():
            x = torch.randn(rows, tokens, first.shape[1], device=first.device).to(first.dtype)
            calls = {name: _calls(layers, x) for name, layers in ways.items()}
            outputs = {name: layers[0](x) for name, layers in ways.items()}
            timings = time_in_turns(calls, seconds, first.device)
            per_layer = {name: Timing(tuple(t / len(sample) for t in each.times)) for name, each in timings.items()}
            yield Measurement(subject, rows, tokens, per_layer, _errors(outputs))


def _calls(layers: Sequence[nn.Module], x: Tensor) -> Callable[[], None]:
    """Return a function that calls all layers."""

    def run() -> None:
        for layer in layers:
            layer(x)

    return run


def _model_measurement(
    model: nn.Module,
    packed: nn.Module,
    shape: tuple[int, int],
    inputs: Mapping[str, Tensor],
    compiled: bool,
    seconds: float,
    notes: list[str],
) -> Measurement:
    """Time the whole model at one shape."""
    ways: dict[str, Callable[..., Any]] = {DENSE: model, "packed": packed}
    if compiled:
        for name, each in ((COMPILED, model), ("packed compiled", packed)):
            torch.compiler.reset()
            try:
                function = torch.compile(each, dynamic=False)
                function(**inputs)
                ways[name] = function
            except Exception as error:  # no compiler, or one that does not take this model
                notes.append(f"Not compiled: {str(error).strip().splitlines()[0]}")
                break
    calls = {name: lambda way=way: way(**inputs) for name, way in ways.items()}
    outputs = {name: way(**inputs)[0] for name, way in ways.items()}
    device = next(iter(inputs.values())).device
    return Measurement(WHOLE_MODEL, *shape, time_in_turns(calls, seconds, device), _errors(outputs))


def _errors(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest differences from the dense outputs, as a share of the largest output."""
    dense = outputs[DENSE].float()
    largest = float(dense.abs().max()) or 1.0
    return {
        name: float((output.float() - dense).abs().max()) / largest for name, output in outputs.items() if name != DENSE
    }


def _rows(measurement: Measurement) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each way."""
    for name, timing in measurement.timings.items():
        first, third = timing.spread
        shown = measurement.subject, str(measurement.batch), str(measurement.length)
        cells = [f"{timing.median * 1e3:.3f}", f"{first * 1e3:.3f} - {third * 1e3:.3f}"]
        if name == DENSE:
            yield (*shown, name, *cells, "", "", measurement.verdict)
        else:
            yield ("", "", "", name, *cells, f"{measurement.speedup(name):.2f}x", f"{measurement.errors[name]:.1e}", "")


def _as_dict(measurement: Measurement) -> dict[str, Any]:
    ways = {
        name: {
            "median": timing.median,
            "quartiles": list(timing.spread),
            "speedup": measurement.speedup(name),
            "speedup_quartiles": list(measurement.spread(name)),
            "error": measurement.errors.get(name, 0.0),
        }
        for name, timing in measurement.timings.items()
    }
    shape = {"subject": measurement.subject, "batch": measurement.batch, "length": measurement.length}
    return {**shape, "tokens": measurement.tokens, "verdict": measurement.verdict, "ways": ways}
