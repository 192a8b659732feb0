"""The work of one forward pass: how often it uses each matrix, and what it multiplies beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nxm_hf.families.blocks import bare, is_matrix, is_transposed, plain


@dataclass(frozen=True)
class Work:
    """FLOPs of one forward pass: by matrix, and of all other products; None where nothing was run to count those."""

    matrices: dict[str, int]
    other: int | None


def measure(model: nn.Module, inputs: Mapping[str, Tensor] | None, tokens: int) -> Work:
    """Count one forward pass on these inputs, or on zeros of our own that fit; where none do, one row per matrix."""
    model = bare(model)
    found = {plain(name): module for name, module in model.named_modules() if is_matrix(module)}
    if inputs is not None:
        return _run(model, found, inputs)
    try:
        return _run(model, found, zeros(model, tokens))
    except Exception:  # what a model makes of zeros can be any error, and the shares of its matrices need no run
        return Work({name: 2 * module.weight.numel() for name, module in found.items()}, None)


def zeros(model: nn.Module, tokens: int) -> dict[str, Tensor]:
    """One example of zeros: a text of so many tokens (or as many as the model takes), or an image."""
    config, device = model.config, next(model.parameters()).device
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.zeros(1, config.num_channels, config.image_size, config.image_size).to(device)}
    most = getattr(config, "max_position_embeddings", tokens)
    length = min(tokens, most) if most > 0 else tokens  # XLNet says -1: it has no limit
    names = ["input_ids", "decoder_input_ids"] if config.is_encoder_decoder else ["input_ids"]
    return {name: torch.zeros(1, length, dtype=torch.long, device=device) for name in names}


def _run(model: nn.Module, found: Mapping[str, nn.Module], inputs: Mapping[str, Any]) -> Work:
    counts = dict.fromkeys(found, 0)
    handles = [module.register_forward_hook(partial(_count, counts, name)) for name, module in found.items()]
    try:
        # The plain form of attention is the one whose products the counter knows on every device.
        with still(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Work(counts, max(counter.get_total_flops() - sum(counts.values()), 0))


def _count(counts: dict[str, int], name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
    outputs = module.weight.shape[1 if is_transposed(module) else 0]
    counts[name] += 2 * (output.numel() // outputs) * module.weight.numel()


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout, and so without chance."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
