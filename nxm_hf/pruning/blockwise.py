"""Prune a model block by block: each layer from the statistics of its inputs, which the earlier blocks determine."""

import logging
from collections.abc import Sequence

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
    unwritten: list[tuple[Sequence[Target], PrunedBlock]] = []
    others = plan.shards is not None and share_of(plan.shards) > 0  # only the first process shows its progress
    pruned = [name for name in order if targets[name]]
    for name in tqdm(pruned, desc="Pruning blocks", dynamic_ncols=True, disable=others):
        if fitting:
            fitting.begin(names.index(name), name)
        block = cache.load(plain_name(name)) if cache else None
        if block is None:
            observe = fitting.observe if fitting else None
            statistics = _collect(replay, names.index(name), targets[name], pruner, report, observe) if replay else None
            block = PrunedBlock(_prune_layers(targets[name], pruner, statistics, report))
            if fitting:
                block = fitting.fit(model, name, targets[name], block)
            if cache:
                cache.save(plain_name(name), block)
        unwritten.append((targets[name], block))
        if not dense_inputs:  # with dense inputs, all blocks stay dense until the last one is collected
            _write(model, unwritten)
        layers.update((layer.name, layer) for layer, _ in block.layers)
        reconstructed += [block.reconstructed] if block.reconstructed else []
    _write(model, unwritten)
    return layers, reconstructed


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


def _write(model: nn.Module, unwritten: list[tuple[Sequence[Target], PrunedBlock]]) -> None:
    """Write finished blocks into the model, and empty the list."""
    for targets, block in unwritten:
        for target, (_, pruned) in zip(targets, block.layers, strict=True):
            target.matrix().copy_(pruned.weight)
            if pruned.bias is not None:
                bias = target.layer.bias
                assert bias is not None  # a pruner returns no bias for a layer without one
                local(bias).copy_(pruned.bias)
        for name, vector in block.vectors.items():
            model.get_parameter(name).copy_(vector)
    unwritten.clear()


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
        density=count_entries(pruned.weight).nonzeros / weight.numel(),
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
