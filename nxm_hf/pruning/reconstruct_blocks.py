"""Reconstruction of the blocks of a model one after another, each just after its layers were pruned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nxm_hf.layers.modules import plain_name
from nxm_hf.layers.plan import Target
from nxm_hf.pruners import PrunedWeight
from nxm_hf.pruning.block_cache import PrunedBlock
from nxm_hf.pruning.block_replay import BlockReplay
from nxm_hf.pruning.input_statistics import InputStatistics, token_masks
from nxm_hf.pruning.reconstruction import (
    BlockCall,
    Reconstruction,
    Tensors,
    copied_arguments,
    dense_states,
    fit_block,
    trained_parameters,
)
from nxm_hf.pruning.result import ReconstructedBlock
from nxm_hf.solvers.entry_counts import count_entries


class BlockReconstruction:
    """Fits each block to the outputs of the dense block, from the inputs that it receives.

    By default the targets are the outputs of the dense model, so that a block also corrects errors of earlier blocks. A
    second replay computes them before the block changes. If outputs cannot be cached, the targets are the outputs of
    the dense block for the inputs that it receives.

    Args:
        replay: The forward passes that the statistics of inputs are collected in.
        settings: The number of steps, and so on.
        dense_inputs: Whether blocks receive the outputs of dense blocks in `replay`.
    """

    def __init__(self, replay: BlockReplay, settings: Reconstruction, dense_inputs: bool):
        self._replay, self._settings = replay, settings
        self._dense = replay.twin() if replay.caches_outputs and not dense_inputs else None
        self._targets: dict[int, list[Tensor]] = {}  # by batch, the outputs of the dense block in the dense model
        self._calls: list[BlockCall] = []
        self._in_decoder = False

    def begin(self, number: int, name: str) -> None:
        """Begin with a block that is dense still. Blocks must come in the order of their calls.

        Args:
            number: The number of the block.
            name: Its name.
        """
        self._calls, self._targets = [], {}
        self._in_decoder = "decoder" in name.split(".")
        if self._dense is not None:
            self._dense.collect(number, InputStatistics([], len(self._replay.batches)), self._keep_target, final=True)

    def observe(self, batch: int, compute: partial) -> Any:
        """Compute a call of the block, and keep its inputs for the fit.

        Args:
            batch: The number of the batch.
            compute: The block's forward with its arguments.

        Returns:
            The output.
        """
        args, kwargs = copied_arguments(compute)  # before the block is computed, which may change them in place
        output = compute()
        targets = self._targets.get(batch)
        target = targets.pop(0) if targets else dense_states(output)
        self._calls.append(BlockCall(args, kwargs, target, self._mask(batch)))
        return output

    def fit(self, model: nn.Module, name: str, targets: Sequence[Target], pruned: PrunedBlock) -> PrunedBlock:
        """Fit a block that was pruned, and not written into the model.

        Args:
            model: The model.
            name: The name of the block.
            targets: Its pruned layers.
            pruned: The results of the pruning method.

        Returns:
            The fitted block; unchanged if the block was never called.
        """
        block = model.get_submodule(name)
        names = {id(parameter): key for key, parameter in block.named_parameters()}
        trained = trained_parameters(model, block, targets)
        if not self._calls or not all(id(target.layer.weight) in trained for target in targets):
            return pruned
        start, masks = _after_pruning(targets, pruned, names)
        vectors = {key: p.detach() for key, p in block.named_parameters() if id(p) in trained and key not in start}
        fitted = fit_block(block, {**start, **vectors}, masks, self._calls, self._settings)
        layers = [
            (layer, _taken(target, fitted.tensors, names, part.note))
            for target, (layer, part) in zip(targets, pruned.layers, strict=True)
        ]
        layers = [(replace(layer, density=_density(part)), part) for layer, part in layers]
        others = {f"{name}.{key}": fitted.tensors[key] for key in vectors}
        return PrunedBlock(layers, others, ReconstructedBlock(plain_name(name), fitted.before, fitted.after))

    def _mask(self, batch: int) -> Tensor | None:
        """Return which positions of the block's outputs are tokens."""
        model = self._replay.model
        two_stacks = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        return token_masks(self._replay.batches[batch], two_stacks)[self._in_decoder]

    def _keep_target(self, batch: int, compute: partial) -> Any:
        output = compute()
        self._targets.setdefault(batch, []).append(dense_states(output))
        return output


def _after_pruning(targets: Sequence[Target], pruned: PrunedBlock, names: Mapping[int, str]) -> tuple[Tensors, Tensors]:
    """Return pruned weights and biases, and the masks of the weights, by their names in the block."""
    start: Tensors = {}
    masks: Tensors = {}
    for target, (_, part) in zip(targets, pruned.layers, strict=True):
        layer, name = target.layer, names[id(target.layer.weight)]
        start[name] = torch.empty_like(layer.weight)  # in the form of the parameter, which may be transposed
        layer.matrix(start[name]).copy_(part.weight)
        masks[name] = start[name] != 0
        if layer.bias is not None:
            start[names[id(layer.bias)]] = layer.bias.detach() if part.bias is None else part.bias
    return start, masks


def _taken(target: Target, tensors: Tensors, names: Mapping[int, str], note: str) -> PrunedWeight:
    """Return the fitted weight and bias of a layer."""
    layer = target.layer
    weight = layer.matrix(tensors[names[id(layer.weight)]]).contiguous()
    bias = None if layer.bias is None else tensors[names[id(layer.bias)]]
    return PrunedWeight(weight, bias, weight != 0, note)


def _density(part: PrunedWeight) -> float:
    return count_entries(part.weight).nonzeros / max(part.weight.numel(), 1)
