"""The inputs of a model's layers, from plain hooks on whole forwards, and a method that remembers what it is shown."""

import torch
from torch import nn

from nxm_hf import pruners
from nxm_hf.pruners import Inputs, OneShot


class Witness(OneShot):
    """A user's own method: prunes by magnitude and remembers what it was shown."""

    def __init__(self):
        self.seen: list[Inputs] = []

    def prune(self, weight, bias, inputs, pattern):
        self.seen.append(inputs)
        return pruners.make("magnitude")(weight, bias, None, pattern)


def literal_inputs(model, batches, layers) -> dict[str, torch.Tensor]:
    """Every input of each layer that is no padding, row by row, in fp64, from whole forwards with plain hooks."""
    seen = {layer.name: [] for layer in layers}
    for batch in batches:
        hooks = []
        for layer in layers:

            def see(module, args, layer=layer, batch=batch):
                seen[layer.name].extend(literal_rows(layer, args[0].detach(), batch))

            hooks.append(layer.module.register_forward_pre_hook(see))
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
    return {name: torch.stack(rows).double() for name, rows in seen.items() if rows}


def literal_rows(layer, x, batch):
    """The inputs one by one, but for those at places where the mask that the layer's tokens have is 0."""
    if isinstance(layer.module, nn.Conv1d):
        x = x.permute(0, 2, 1)
    mask = batch.get("attention_mask")
    if ".decoder." in f".{layer.name}" and not any(part in layer.name for part in ("encoder_attn.k", "encoder_attn.v")):
        mask = batch.get("decoder_attention_mask", mask)
    if "EncDecAttention.k" in layer.name or "EncDecAttention.v" in layer.name:
        mask = batch["attention_mask"]
    if mask is not None and x.dim() == 2 and len(x) == mask.numel():  # OPT's feed-forward
        x = x.reshape(*mask.shape, -1)
    if mask is None or x.shape[:2] != mask.shape:
        return list(x.reshape(-1, x.shape[-1]))
    return [x[row, place] for row in range(len(mask)) for place in range(mask.shape[1]) if mask[row, place]]


def grouped(layer) -> bool:
    return isinstance(layer.module, nn.Conv1d) and layer.module.groups > 1
