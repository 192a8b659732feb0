"""The stamp: our config inside a model's own, so that a later plain `save_pretrained` keeps the knowledge."""

from torch import nn

from nxm_hf.config.config import STAMP, NxMConfig


def put_stamp(model: nn.Module, config: NxMConfig) -> None:
    """Say in the model's config what its weights now are; a model without a config goes without."""
    if (own := getattr(model, "config", None)) is not None:
        setattr(own, STAMP, config.to_dict())


def remove_stamp(model: nn.Module) -> None:
    """Unsay it: the weights are about to be dense."""
    if read_stamp(model) is not None:
        delattr(model.config, STAMP)


def read_stamp(model: nn.Module) -> NxMConfig | None:
    """What a model's config says of its weights, if it says anything."""
    words = getattr(getattr(model, "config", None), STAMP, None)
    return NxMConfig.from_dict(words) if words else None
