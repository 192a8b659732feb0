"""Prune the sharded layers of a block: one process prunes a layer, and sends every process its part."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from nxm_hf.layers.plan import Target
from nxm_hf.layers.shard_exchange import computing_device, exchange, hand_out
from nxm_hf.layers.sharding import Shards, reshard, whole
from nxm_hf.pruners import PrunedWeight
from nxm_hf.pruning.result import PrunedLayer

Pruned = tuple[PrunedLayer, PrunedWeight]
PruneLayer = Callable[[Target, Tensor, Tensor | None], Pruned]  # from the whole weight and bias


def prune_by_owners(
    targets: Sequence[Target], shards: Shards, sharing: Mapping[str, Hashable], prune: PruneLayer
) -> list[Pruned]:
    """Prune the layers of a block, each in one process. Every process calls this.

    Rounding differs between processes, and in some methods the last bit changes the mask. So one process decides.

    Args:
        targets: The layers.
        shards: The processes that share their weights.
        sharing: For each layer, a key. Layers with the same key are pruned by the same process.
        prune: Prune a whole layer.

    Returns:
        The result of each layer, with this process's part of the weight and of the bias.

    Raises:
        ValueError: If a layer cannot be pruned; in all processes.
    """
    owners = layer_owners(targets, sharing, shards.processes)
    own = {}
    reshard(shards.model)
    for target in targets:
        weight, bias = target.layer.matrix(whole(target.layer.weight.detach())), _whole_bias(target)
        if owners[target.name] == shards.rank:
            own[target.name] = target, weight, bias
        del weight  # free the memory before the next one is gathered
    results: dict[str, Pruned] = {}
    failure: Exception | None = None
    try:
        while own:
            target, weight, bias = own.pop(next(iter(own)))
            results[target.name] = prune(target, weight, bias)
    except Exception as error:  # the other processes wait, so the error is sent to them
        failure = error
    facts = {name: (layer, pruned.bias is not None) for name, (layer, pruned) in results.items()}
    each = exchange(shards, (facts, None if failure is None else f"{type(failure).__name__}: {failure}"))
    _raise_first(failure, [text for _, text in each if text is not None])
    layers = {name: fact for facts, _ in reversed(each) for name, fact in facts.items()}  # of the first set
    parts = []
    for target in targets:
        (layer, has_bias), own_result = layers[target.name], results.pop(target.name, None)
        made = None if own_result is None else own_result[1]
        parts.append((layer, _handed_out(target, shards, owners[target.name], made, has_bias)))
    return parts


def layer_owners(targets: Sequence[Target], sharing: Mapping[str, Hashable], processes: int) -> dict[str, int]:
    """Return the process that prunes each layer: the one with the least work so far.

    Args:
        targets: The layers.
        sharing: For each layer, a key. Layers with the same key are pruned by the same process. An empty key is shared
            with no layer.
        processes: The number of processes.
    """
    work: dict[Hashable, int] = {}
    for target in targets:
        rows, columns = target.layer.shape
        key = sharing[target.name] or target.name
        work[key] = work.get(key, columns**2) + rows * columns
    loads, owners = [0] * processes, {}
    for key in sorted(work, key=lambda key: -work[key]):
        owners[key] = loads.index(min(loads))
        loads[owners[key]] += work[key]
    return {target.name: owners[sharing[target.name] or target.name] for target in targets}


def _whole_bias(target: Target) -> Tensor | None:
    return None if target.layer.bias is None else whole(target.layer.bias.detach())


def _raise_first(own: Exception | None, failures: Sequence[str]) -> None:
    if own is not None:
        raise own
    if failures:
        raise ValueError(failures[0].removeprefix("ValueError: "))


def _handed_out(
    target: Target, shards: Shards, owner: int, result: PrunedWeight | None, has_bias: bool
) -> PrunedWeight:
    """Return this process's part of a pruned layer, which only the owner of the layer has as a whole."""
    layer = target.layer
    weight = _received(shards, owner, layer.weight, layer.shape, None if result is None else result.weight)
    part, bias = shards.part(layer, weight).clone(), None
    if has_bias:
        assert layer.bias is not None  # a pruner returns no bias for a layer without one
        whole = _received(shards, owner, layer.bias, layer.bias.shape, None if result is None else result.bias)
        bias = shards.part_of_bias(whole).clone()
    return PrunedWeight(part, bias, part != 0)


def _received(shards: Shards, owner: int, like: Tensor, shape: Sequence[int], own: Tensor | None) -> Tensor:
    """Return a tensor of the owner, with the type and device of a parameter."""
    empty = torch.empty(shape, dtype=like.dtype, device=computing_device(like)) if own is None else own
    return hand_out(shards, owner, empty)
