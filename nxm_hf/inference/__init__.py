"""Inference: compute with packed weights, on the CPU and on the GPU, where that is measured to be faster."""

from nxm_hf.inference.report import ConvertedLayer, InferenceReport
from nxm_hf.inference.to_inference import to_inference

__all__ = ["ConvertedLayer", "InferenceReport", "to_inference"]
