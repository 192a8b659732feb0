"""Example inputs made of zeros, to run a model once."""

import torch
from torch import Tensor, nn


def example_inputs(model: nn.Module, tokens: int) -> dict[str, Tensor]:
    """One example of zeros: a text of so many tokens (or as many as the model takes), or an image."""
    config, device = model.config, next(model.parameters()).device
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.zeros(1, config.num_channels, config.image_size, config.image_size).to(device)}
    most = getattr(config, "max_position_embeddings", tokens)
    length = min(tokens, most) if most > 0 else tokens  # XLNet says -1: it has no limit
    names = ["input_ids", "decoder_input_ids"] if config.is_encoder_decoder else ["input_ids"]
    return {name: torch.zeros(1, length, dtype=torch.long, device=device) for name in names}
