"""Reconstruction of a whole model, after all of its blocks were pruned."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from nxm_hf.layers.modules import find_blocks
from nxm_hf.layers.plan import Target
from nxm_hf.pruning.block_replay import BlockReplay
from nxm_hf.pruning.calibration import Batch
from nxm_hf.pruning.input_statistics import InputStatistics, token_masks
from nxm_hf.pruning.reconstruction import (
    BlockCall,
    Reconstruction,
    copied_arguments,
    dense_states,
    fit_block,
    trained_parameters,
)
from nxm_hf.pruning.result import ReconstructedBlock

WHOLE_MODEL = "the whole model"  # the name of its row in the table of blocks


class ModelReconstruction:
    """Fits the pruned weights of all blocks together to the last hidden states of the dense model.

    Make it while the model is dense. It keeps the hidden states of the dense model in memory of the CPU, and no weights
    of it. A head on top of these states is neither computed nor changed. Models that are no more than a stack with a
    head, such as T5 with its language head, are fitted to the outputs of the head.

    Args:
        model: The model, still dense, without wrappers and in evaluation mode.
        targets: The layers that will be pruned.
        batches: The calibration batches; at least one.
        settings: The number of steps, and so on.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target], batches: Sequence[Batch], settings: Reconstruction):
        self._model, self._targets, self._settings = model, targets, settings
        self._batches, self._calls = batches, list[BlockCall]()
        for part in _parts(model, targets):
            self._part = part
            replay = BlockReplay(model, batches, [part], [0], [-1], False, len(batches), len(batches))
            replay.collect(0, InputStatistics([], len(batches)), self._record)
            if self._calls:
                break

    @torch.no_grad()
    def fit(self) -> ReconstructedBlock:
        """Fit the model, in place, after its layers were pruned.

        Returns:
            The error of its hidden states before and after.
        """
        trained = trained_parameters(self._model, self._part, self._targets)
        weights = {id(target.layer.weight) for target in self._targets}
        parameters = {name: p for name, p in self._part.named_parameters() if id(p) in trained}
        start = {name: parameter.detach() for name, parameter in parameters.items()}
        masks = {name: start[name] != 0 for name, parameter in parameters.items() if id(parameter) in weights}
        fitted = fit_block(self._part, start, masks, self._calls, self._settings)
        for name, parameter in parameters.items():
            parameter.copy_(fitted.tensors[name])
        return ReconstructedBlock(WHOLE_MODEL, fitted.before, fitted.after)

    def _record(self, batch: int, compute: partial) -> Any:
        """Compute a call of the part, and keep its arguments and its hidden states."""
        args, kwargs = copied_arguments(compute)
        output = compute()
        two_stacks = bool(getattr(getattr(self._model, "config", None), "is_encoder_decoder", False))
        mask = token_masks(self._batches[batch], two_stacks)[two_stacks]  # the last hidden states are the decoder's
        self._calls.append(BlockCall(args, kwargs, dense_states(output), mask))
        return output


def _parts(model: nn.Module, targets: Sequence[Target]) -> Iterator[nn.Module]:
    """Yield the parts of a model whose outputs may be its last hidden states, the best one first.

    These are the base model, the module that holds all blocks, and the model itself. OPT with a head never calls its
    base model.
    """
    for part in (getattr(model, "base_model", model), _holder_of_blocks(model), model):
        inside = set(part.modules())
        if all(target.layer.module in inside for target in targets):
            yield part


def _holder_of_blocks(model: nn.Module) -> nn.Module:
    """Return the innermost module with a forward of its own that holds all blocks of a model."""
    blocks = {block for _, block in find_blocks(model)}
    holder = model
    part: nn.Module | None = model
    while part is not None and part not in blocks:
        holder = holder if isinstance(part, nn.ModuleList) else part
        part = next((child for child in part.children() if blocks <= set(child.modules())), None)
    return holder
