"""Load a model for inference: the settings of `to_inference` as a `quantization_config` of `from_pretrained`."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from nxm_hf.inference.conversion import to_inference
from nxm_hf.packing.quantizer import NxMPackedConfig

logger = logging.getLogger("nxm_hf")


def NxMInference(
    backend: str = "auto",
    only_if_faster: bool = True,
    batch: int | Sequence[int] = 1,
    length: int | Sequence[int] = 128,
) -> NxMPackedConfig:
    """Return a `quantization_config` with which `from_pretrained` calls `to_inference` on the loaded model.

    The directory may be dense or packed. The report is `model.inference_report`.

    Args:
        backend: See `to_inference`.
        only_if_faster: See `to_inference`.
        batch: See `to_inference`.
        length: See `to_inference`.

    Example:
        >>> NxMInference(batch=8).after_loading is not None
        True
    """
    settings = dict(backend=backend, only_if_faster=only_if_faster, batch=batch, length=length)
    return NxMPackedConfig(after_loading=partial(_convert, settings=settings))


def _convert(model: nn.Module, settings: dict[str, Any]) -> None:
    report = to_inference(model, **settings)
    model.inference_report = report  # type: ignore[assignment]  # an attribute that is no module or tensor
    logger.info("%s", report)
