"""Conversion: make the layers of a sparse model compute with packed weights, where that is measured to be faster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import geometric_mean

import torch
from torch import nn

from nxm_hf.inference.backends import Backend, backends_for
from nxm_hf.inference.candidates import Candidate, find_candidates
from nxm_hf.inference.report import ConvertedLayer, InferenceReport
from nxm_hf.inference.timing import time_in_turns
from nxm_hf.layers.modules import eval_no_grad, unwrap

TOLERANCE = 0.97  # of a speed-up that still counts as no loss
SAMPLE = 8  # layers of a kind that are timed one after the other, so that their weights are not all in cache


@dataclass(frozen=True)
class _Choice:
    """The backend for the layers of a kind, or None, with the speed-ups behind the choice."""

    backend: Backend | None
    speedups: Mapping[int, float]
    reason: str
    built: Mapping[str, nn.Module] = field(default_factory=dict)  # what was timed, by the name of the layer


def to_inference(
    model: nn.Module,
    backend: str = "auto",
    only_if_faster: bool = True,
    batch: int | Sequence[int] = 1,
    length: int | Sequence[int] = 128,
) -> InferenceReport:
    """Replace the sparse layers of a model by layers that compute with packed weights, in place.

    Every kind of layer is timed on this machine, with the threads that torch uses now. It is replaced if it is faster
    on the whole, and slower at none of the asked shapes. The model is put in evaluation mode and its weights are
    frozen. It can no longer be saved: do that first.

    Args:
        model: A model that is sparse: its weights hold 2:4 or another n:4 or n:8 pattern. They may be packed.
        backend: The name of a backend, or "auto" for all that the device has.
        only_if_faster: Whether layers that are not faster stay dense. Without it all are replaced that can be.
        batch: The number of sequences in a batch, or several to be asked for.
        length: The tokens of a sequence, or several. Write 1 for the steps of `generate`.

    Returns:
        The report: how each layer was converted, and why. It prints as a table.

    Raises:
        ValueError: If there is no such backend, or a shape is not positive.

    Example:
        >>> layer = nn.Linear(64, 64)
        >>> report = to_inference(nn.Sequential(layer), length=16)
        >>> report.layers[0].reason
        'it holds no n:4 or n:8 pattern'
    """
    tokens = _tokens(batch, length)
    model = unwrap(model)
    before = _bytes(model)
    model.requires_grad_(False)
    model.eval()
    kinds: dict[tuple[object, ...], list[Candidate]] = {}
    candidates = find_candidates(model)
    for candidate in candidates:
        kinds.setdefault(candidate.kind, []).append(candidate)
    layers = {}
    with eval_no_grad(model):
        for group in kinds.values():
            choice = _choose(group, backend, only_if_faster, tokens)
            for candidate in group:
                _put(model, candidate, choice, tokens)
                layers[candidate.name] = _described(candidate, choice)
    ordered = tuple(layers[candidate.name] for candidate in candidates)
    return InferenceReport(ordered, tokens, torch.get_num_threads(), before, _bytes(model))


def _tokens(batch: int | Sequence[int], length: int | Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of tokens that layers will get, in order."""
    batches, lengths = ([each] if isinstance(each, int) else list(each) for each in (batch, length))
    if not batches or not lengths or min(*batches, *lengths) < 1:
        raise ValueError(
            f"batch={batch!r} and length={length!r} must be numbers of at least 1; write batch=8, length=128."
        )
    return tuple(sorted({rows * columns for rows in batches for columns in lengths}))


def _choose(group: Sequence[Candidate], name: str, only_if_faster: bool, tokens: Sequence[int]) -> _Choice:
    """Choose the backend for layers of one kind."""
    backends, reason = backends_for(name, group[0])
    if reason is not None:
        return _Choice(None, {}, reason)
    timed, failures = [], []
    for each in backends:
        try:
            timed.append(_timed(group[:SAMPLE], each, tokens))
        except RuntimeError as error:  # a library that refuses a shape, or has no memory left
            failures.append(f"{each.name} failed: {str(error).strip().splitlines()[0]}")
    if not timed:
        return _Choice(None, {}, failures[0])
    best = max(timed, key=lambda choice: geometric_mean(choice.speedups.values()))
    if not only_if_faster:
        return replace(best, reason="all layers were asked for")
    good = [choice for choice in timed if min(choice.speedups.values()) >= TOLERANCE]
    if good:
        best = max(good, key=lambda choice: geometric_mean(choice.speedups.values()))
        if geometric_mean(best.speedups.values()) > 1:
            return replace(best, reason="faster")
    slow = [str(count) for count, speedup in best.speedups.items() if speedup < TOLERANCE]
    where = f"slower at {', '.join(slow)} tokens" if slow else "no faster"
    return replace(best, backend=None, reason=f"{where}: left dense")


def _timed(sample: Sequence[Candidate], backend: Backend, tokens: Sequence[int]) -> _Choice:
    """Measure the speed-up over dense layers at each number of tokens."""
    modules = {"dense": [each.dense() for each in sample], "packed": [backend.build(each, tokens) for each in sample]}
    first, speedups = sample[0], {}
    for count in tokens:
        inputs = torch.randn(count, first.shape[1], device=first.device).to(first.dtype)

        def run(layers: Sequence[nn.Module], inputs: torch.Tensor = inputs) -> None:
            for layer in layers:
                layer(inputs)

        calls = {name: lambda layers=layers, run=run: run(layers) for name, layers in modules.items()}
        timings = time_in_turns(calls, device=first.device)
        speedups[count] = timings["dense"].median / timings["packed"].median
    return _Choice(
        backend, speedups, "", {each.name: layer for each, layer in zip(sample, modules["packed"], strict=True)}
    )


def _put(model: nn.Module, candidate: Candidate, choice: _Choice, tokens: Sequence[int]) -> None:
    """Put the chosen module in the place of a layer: the one that was timed, if it was."""
    if choice.backend is None:
        new = candidate.dense()
    elif candidate.name in choice.built:
        new = choice.built[candidate.name]
    else:
        new = choice.backend.build(candidate, tokens)
    if new is not candidate.module:
        model.set_submodule(candidate.name, new)


def _described(candidate: Candidate, choice: _Choice) -> ConvertedLayer:
    return ConvertedLayer(
        name=candidate.name,
        shape=candidate.shape,
        pattern=candidate.pattern_text,
        backend="dense" if choice.backend is None else choice.backend.name,
        speedups=dict(choice.speedups),
        reason=choice.reason,
    )


def _bytes(model: nn.Module) -> int:
    """Return the bytes of the weights and buffers of a model."""
    return sum(tensor.nbytes for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
