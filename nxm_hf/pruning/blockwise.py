"""Block by block: each layer of a model is pruned from what the walk saw of its inputs; the next block sees that."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from transformers.utils.logging import tqdm

from nxm_hf import pruners
from nxm_hf.layers.modules import find_blocks, plain_name
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.pruners import Inputs, OneShot, Pruned, output_error
from nxm_hf.pruning.block_replay import BlockReplay
from nxm_hf.pruning.calibration import Batch
from nxm_hf.pruning.input_statistics import Gathering
from nxm_hf.pruning.result import PrunedLayer

Done = list[tuple[PrunedLayer, Pruned]]  # of one block


class Shelf(Protocol):
    """Where finished blocks lie, so that what is interrupted goes on after the last of them."""

    def load(self, block: str) -> Done | None:
        """The block, if it was finished."""

    def save(self, block: str, done: Done) -> None:
        """Put a finished block there."""


def prune_blocks(
    model: nn.Module,
    plan: Plan,
    pruner: OneShot,
    batches: Sequence[Batch] | None,
    dense: bool = False,
    shelf: Shelf | None = None,
) -> dict[str, PrunedLayer]:
    """Prune block after block, as the model calls them; what is on the shelf is taken from there."""
    found = dict(find_blocks(model))
    targets = {name: [t for t in plan.targets if t.name.startswith(f"{plain_name(name)}.")] for name in found}
    walk = BlockReplay(model, batches, list(found.values())) if batches else None
    names = [list(found)[number] for number in (walk.order if walk else range(len(found)))]
    outcomes, waiting = {}, []
    for name in tqdm([name for name in names if targets[name]], desc="Pruning blocks", dynamic_ncols=True):
        done = shelf.load(plain_name(name)) if shelf else None
        if done is None:
            gathering = walk and _gather(walk, list(found).index(name), targets[name], pruner.needs_sample)
            done = [_prune_layer(target, pruner, gathering) for target in targets[name]]
            if shelf:
                shelf.save(plain_name(name), done)
        waiting += zip(targets[name], [pruned for _, pruned in done], strict=True)
        if not dense:  # with dense inputs all blocks wait for the last to have seen theirs
            _put(waiting)
        outcomes.update((outcome.name, outcome) for outcome, _ in done)
    _put(waiting)
    return outcomes


def _gather(walk: BlockReplay, block: int, targets: Sequence[Target], with_sample: bool) -> Gathering:
    gathering = Gathering([target.layer for target in targets], walk.batches, with_sample, walk.two_stacks)
    walk.gather(block, gathering)
    return gathering


def _put(waiting: list[tuple[Target, Pruned]]) -> None:
    """Write what was found into the layers."""
    for target, pruned in waiting:
        target.layer.matrix(target.layer.weight).copy_(pruned.weight)
        if pruned.bias is not None:
            target.layer.module.bias.copy_(pruned.bias)
    waiting.clear()


def _prune_layer(target: Target, pruner: OneShot, gathering: Gathering | None) -> tuple[PrunedLayer, Pruned]:
    """Prune it; by magnitude, with a note, where calibration has nothing to say of it."""
    weight, bias = target.layer.matrix(target.layer.weight.detach()), target.layer.module.bias
    inputs = gathering and gathering.inputs().get(target.name)
    note = gathering.doubt(target.name) if gathering else ""
    if pruner.needs_inputs and inputs is None:
        pruner, note = pruners.make("magnitude"), f"{note}; pruned by magnitude"
    try:
        pruned = pruner(weight, bias, inputs, target.pattern)
    except ValueError as error:
        raise ValueError(f"{target.name}: {error}") from error
    by_size = Pruned(target.pattern.project(weight), None, pruned.mask)
    energy = weight.double().square()
    outcome = PrunedLayer(
        name=target.name,
        role=target.layer.role,
        shape=tuple(weight.shape),
        pattern=str(target.pattern),
        density=int(pruned.weight.count_nonzero()) / weight.numel(),
        kept_energy=float(energy[pruned.mask].sum() / energy.sum()) if energy.any() else 1.0,
        magnitude_error=_error(weight, by_size, inputs, bias),
        error=_error(weight, pruned, inputs, bias),
        tokens=inputs and inputs.count,
        note="; ".join(filter(None, [pruned.note, note])),
    )
    return outcome, pruned


def _error(weight: Tensor, pruned: Pruned, inputs: Inputs | None, bias: Tensor | None) -> float | None:
    if inputs is None or not inputs.count:
        return None
    rounded = Inputs(inputs.gram.float(), inputs.mean.float(), inputs.count)  # enough to compare with
    return output_error(weight, pruned.weight, rounded, bias, pruned.bias)
