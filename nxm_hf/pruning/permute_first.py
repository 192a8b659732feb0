"""Permutation before pruning: the order of channels in which the scores of a method keep the most."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nxm_hf.config import NxMConfig
from nxm_hf.layers.plan import Plan
from nxm_hf.permutation.permute import Permutation, permute
from nxm_hf.pruning.calibration import Batch
from nxm_hf.pruning.input_statistics import InputStatistics


def permute_first(
    model: nn.Module, plan: Plan, config: NxMConfig, batches: Sequence[Batch], by_inputs: bool
) -> Permutation:
    """Reorder the channels of a dense model in place, so that its masks keep more. Its outputs do not change.

    Args:
        model: The model, without wrappers, in evaluation mode.
        plan: The layers to prune.
        config: The pattern of each layer.
        batches: The calibration batches; the first is the example that the model is checked on. There may be none.
        by_inputs: Whether scores are magnitudes times the norms of the inputs of the dense model.

    Returns:
        The reordered layers, and the gain.
    """
    example = batches[0] if batches else None
    return permute(model, config, inputs=example, norms=_norms(model, plan, batches) if by_inputs else None)


@torch.no_grad()
def _norms(model: nn.Module, plan: Plan, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return the norm of each input over the tokens, by layer; without layers that saw no input other than zero."""
    layers = [target.layer for target in plan.targets]
    two_stacks = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    statistics = InputStatistics(layers, len(batches), two_stacks=two_stacks, with_gram=False)
    device = next(model.parameters()).device
    with statistics.listening():
        for batch in batches:
            statistics.begin_batch(batch)
            model(**{name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()})
            statistics.end_call()
    return {name: inputs.norms for name, inputs in statistics.inputs().items() if inputs.gram.any()}
