"""Inference: compute with packed weights, on the CPU and on the GPU, where that is measured to be faster."""

from nxm_hf.inference.conversion import to_inference
from nxm_hf.inference.report import ConvertedLayer, InferenceReport

__all__ = ["ConvertedLayer", "InferenceReport", "to_inference"]
