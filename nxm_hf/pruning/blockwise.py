"""Prune a model block by block: each layer from the statistics of its inputs, which the earlier blocks determine."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from nxm_hf.layers.modules import find_blocks, plain_name
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.layers.shard_exchange import computing_device, share_of
from nxm_hf.layers.sharding import local
from nxm_hf.pruners import Inputs, Magnitude, OneShot, PrunedWeight, output_error
from nxm_hf.pruning.block_cache import BlockCache, PrunedBlock
from nxm_hf.pruning.block_replay import BlockReplay, Observer
from nxm_hf.pruning.calibration import Batch
from nxm_hf.pruning.input_statistics import InputStatistics
from nxm_hf.pruning.reconstruct_blocks import BlockReconstruction
from nxm_hf.pruning.reconstruction import Reconstruction
from nxm_hf.pruning.result import PrunedLayer, ReconstructedBlock
from nxm_hf.pruning.sharded_layers import prune_by_owners
from nxm_hf.pruning.streamed_blocks import StreamedBlocks
from nxm_hf.pruning.weight_checks import check_weights
from nxm_hf.solvers.entry_counts import count_entries
from nxm_hf.text import shortened

logger = logging.getLogger("nxm_hf")
_ROWS = 32  # of a weight whose squares are summed at a time


def prune_blocks(
    model: nn.Module,
    plan: Plan,
    pruner: OneShot,
    batches: Sequence[Batch] | None,
    dense_inputs: bool = False,
    cache: BlockCache | None = None,
    report: bool = True,
    reconstruction: Reconstruction | None = None,
    streamed: StreamedBlocks | None = None,
) -> tuple[dict[str, PrunedLayer], list[ReconstructedBlock]]:
    """Prune one block after another, in the order in which the model calls them, in place.

    Args:
        model: The model, without wrappers.
        plan: The layers to prune, each with its pattern.
        pruner: The method.
        batches: The calibration batches, or None for a method that needs no inputs.
        dense_inputs: Whether each block receives the outputs of dense blocks. By default, the blocks before it are
            pruned already.
        cache: Finished blocks of an earlier run of the same job. They are not pruned again.
        report: Whether to compute the errors of the layers' outputs. Without it, only what the method needs is
            collected.
        reconstruction: How each block is fitted to the outputs of the dense block; None if it is not.
        streamed: The blocks, if their weights stay in files. Finished ones are then in the cache alone. Without a
            cache they are pruned again when they are read, which only a method that reads no inputs allows.

    Returns:
        Layer -> what was done to it; and what reconstruction did to each block.
    """
    _warn_of_experts(plan, pruner)
    modules = dict(find_blocks(model))
    names = list(modules)
    targets = {name: [t for t in plan.targets if t.name.startswith(f"{plain_name(name)}.")] for name in names}
    calibrates = batches and (report or pruner.needs_inputs or reconstruction)
    replay = BlockReplay.trace(model, batches, list(modules.values()), plan.shards) if batches and calibrates else None
    order = [names[number] for number in replay.order] if replay else names
    fitting = BlockReconstruction(replay, reconstruction, dense_inputs) if replay and reconstruction else None
    layers: dict[str, PrunedLayer] = {}
    reconstructed: list[ReconstructedBlock] = []
    writer = _Writer(model, pruner, dense_inputs, cache, streamed)
    others = plan.shards is not None and share_of(plan.shards) > 0  # only the first process shows its progress
    pruned = [name for name in order if targets[name]]
    for name in tqdm(pruned, desc="Pruning blocks", dynamic_ncols=True, disable=others):
        number = names.index(name)
        if fitting:
            fitting.begin(number, name)
        block = cache.load(plain_name(name)) if cache else None
        if block is None:
            if streamed:
                streamed.load(number)
                check_weights(targets[name])
            observe = fitting.observe if fitting else None
            statistics = _collect(replay, number, targets[name], pruner, report, observe) if replay else None
            block = PrunedBlock(_prune_layers(targets[name], pruner, statistics, report))
            del statistics  # their memory, before that of the next block is taken
            if fitting:
                block = fitting.fit(model, name, targets[name], block)
            if cache:
                cache.save(plain_name(name), block)
        writer.add(number, plain_name(name), targets[name], block)
        layers.update((layer.name, layer) for layer, _ in block.layers)
        reconstructed += [block.reconstructed] if block.reconstructed else []
        del block  # its memory, before that of the next one is taken
    writer.close()
    return layers, reconstructed


class _Writer:
    """Writes finished blocks into the model: each at once, or all at the end if inputs are those of dense blocks."""

    def __init__(
        self,
        model: nn.Module,
        pruner: OneShot,
        at_end: bool,
        cache: BlockCache | None,
        streamed: StreamedBlocks | None,
    ):
        self._model, self._pruner, self._at_end = model, pruner, at_end
        self._cache, self._streamed = cache, streamed
        self._waiting: list[Callable[[], None]] = []

    def add(self, number: int, name: str, targets: Sequence[Target], block: PrunedBlock) -> None:
        if self._streamed is None:
            self._waiting.append(partial(_write, self._model, targets, block))
        else:
            read_again = partial(self._write_again, name, targets)
            self._waiting.append(partial(self._streamed.finished, number, read_again))
            if not self._at_end and self._streamed.holds(number):
                _write(self._model, targets, block)
        if not self._at_end:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._streamed is not None:
            self._streamed.forget()

    def _flush(self) -> None:
        for write in self._waiting:
            write()
        self._waiting.clear()

    def _write_again(self, name: str, targets: Sequence[Target]) -> None:
        """Write a block that was finished before, and that has just been read from the files of the dense model."""
        if self._cache is None:
            for target in targets:
                matrix = target.layer.matrix(target.layer.weight.detach())
                matrix.copy_(self._pruner(matrix, None, None, target.pattern).weight)
        elif block := self._cache.load(name):
            _write(self._model, targets, block)
        else:
            raise ValueError(f"The finished block {name} can no longer be read. Type the same command again.")


def _warn_of_experts(plan: Plan, pruner: OneShot) -> None:
    """Warn once if a method that needs inputs will fall back to magnitudes for experts in one parameter."""
    experts = [target.name for target in plan.targets if target.layer.holds_experts]
    if pruner.needs_inputs and experts:
        logger.warning(
            "%s needs the inputs of each matrix, and experts in one parameter do not show theirs; %d of these "
            "parameters are pruned by magnitude: %s.",
            type(pruner).__name__.lower(),
            len(experts),
            shortened(experts),
        )


def _collect(
    replay: BlockReplay,
    block: int,
    targets: Sequence[Target],
    pruner: OneShot,
    report: bool,
    observe: Observer | None,
) -> InputStatistics:
    """Run the model over all batches, and return the statistics of the inputs of these layers."""
    two_stacks = bool(getattr(getattr(replay.model, "config", None), "is_encoder_decoder", False))
    layers = [target.layer for target in targets]
    with_gram = report or pruner.needs_gram
    statistics = InputStatistics(layers, replay.total, pruner.needs_sample, two_stacks, with_gram)
    replay.collect(block, statistics, observe)
    if (shards := targets[0].shards) is not None:
        statistics.add_up(shards, computing_device(layers[0].weight))
    return statistics


@torch.no_grad()
def _write(model: nn.Module, targets: Sequence[Target], block: PrunedBlock) -> None:
    """Write a finished block into the model."""
    for target, (_, pruned) in zip(targets, block.layers, strict=True):
        target.matrix().copy_(pruned.weight)
        if pruned.bias is not None:
            bias = target.layer.bias
            assert bias is not None  # a pruner returns no bias for a layer without one
            local(bias).copy_(pruned.bias)
    for name, vector in block.vectors.items():
        model.get_parameter(name).copy_(vector)


def _prune_layers(
    targets: Sequence[Target], pruner: OneShot, statistics: InputStatistics | None, report: bool
) -> list[tuple[PrunedLayer, PrunedWeight]]:
    def prune(target: Target, weight: Tensor, bias: Tensor | None) -> tuple[PrunedLayer, PrunedWeight]:
        inputs = statistics.inputs_of(target.name) if statistics else None
        caveats = statistics.caveats(target.name) if statistics else ""
        return _prune_layer(target, weight, bias, pruner, inputs, caveats, report)

    if (shards := targets[0].shards) is not None:
        sharing = {target.name: statistics.sharing(target.name) if statistics else () for target in targets}
        return prune_by_owners(targets, shards, sharing, prune)
    return [prune(target, target.layer.matrix(target.layer.weight.detach()), target.layer.bias) for target in targets]


def _prune_layer(
    target: Target,
    weight: Tensor,
    bias: Tensor | None,
    pruner: OneShot,
    inputs: Inputs | None,
    caveats: str,
    report: bool,
) -> tuple[PrunedLayer, PrunedWeight]:
    """Prune one layer. If the method needs inputs and there are none, prune it by magnitude, with a note."""
    if pruner.needs_inputs and inputs is None:
        pruner, caveats = Magnitude(), f"{caveats}; pruned by magnitude"
    try:
        pruned = pruner(weight, bias, inputs, target.pattern)
    except ValueError as problem:
        raise ValueError(f"{target.name}: {problem}") from problem
    magnitude_error = error = None
    if report and inputs is not None and inputs.count:
        by_magnitude = pruned if isinstance(pruner, Magnitude) else Magnitude()(weight, None, None, target.pattern)
        magnitude_error, error = (_error(weight, x, inputs, bias) for x in (by_magnitude, pruned))
    layer = PrunedLayer(
        name=target.name,
        role=target.layer.role,
        shape=target.layer.shape,
        pattern=str(target.pattern),
        density=count_entries(pruned.weight).nonzeros / max(weight.numel(), 1),
        kept_energy=_kept_energy(weight, pruned.mask),
        magnitude_error=magnitude_error,
        error=error,
        tokens=None if inputs is None else inputs.count,
        note="; ".join(filter(None, [pruned.note, caveats])),
    )
    return layer, pruned


def _kept_energy(weight: Tensor, mask: Tensor) -> float:
    """Return the share of the sum of squares that a mask keeps. Squares are summed in parts that fit into a cache."""
    kept = whole = 0.0
    for part, kept_here in zip(weight.split(_ROWS), mask.split(_ROWS), strict=True):
        squares = part.double().square_()
        whole += float(squares.sum())
        kept += float(squares.mul_(kept_here).sum())
    return kept / whole if whole else 1.0


def _error(weight: Tensor, pruned: PrunedWeight, inputs: Inputs, bias: Tensor | None) -> float:
    single = Inputs(inputs.gram.float(), inputs.mean.float(), inputs.count)  # precise enough to compare methods
    return output_error(weight, pruned.weight, single, bias, pruned.bias)
