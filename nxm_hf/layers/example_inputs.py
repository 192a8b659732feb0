"""Example inputs made of zeros, to run a model once."""

from typing import Any

import torch
from torch import Tensor, nn


def example_inputs(model: nn.Module, tokens: int, rows: int = 1) -> dict[str, Tensor]:
    """Return keyword arguments for one forward pass of a Transformers model: examples of zeros.

    Args:
        model: A model with a `config` and a `main_input_name`.
        tokens: The length of the text. A model with fewer positions gets as many tokens as it has positions.
        rows: The number of examples.

    Returns:
        An image for a model that reads pixels, else token ids, on the device of the model.
    """
    config: Any = model.config
    device = next(model.parameters()).device
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.zeros(rows, config.num_channels, config.image_size, config.image_size).to(device)}
    positions = getattr(config, "max_position_embeddings", tokens)
    length = min(tokens, positions) if positions > 0 else tokens  # XLNet says -1: it has no limit
    names = ["input_ids", "decoder_input_ids"] if config.is_encoder_decoder else ["input_ids"]
    return {name: torch.zeros(rows, length, dtype=torch.long, device=device) for name in names}
