"""Methods, weights and inputs for the tests of one-shot pruners."""

from dataclasses import replace

import torch

from nxm_hf import pruners
from nxm_hf.pruners import ALPS, AdaPrune, Inputs, SparseGPT

OUT, IN = 16, 40


METHODS = {
    **{name: kind() for name, kind in pruners.METHODS.items()},
    "adaprune-wanda": AdaPrune("wanda"),
    "adaprune-sparsegpt": AdaPrune("sparsegpt"),
    "adaprune-adam": AdaPrune(solver="adam", steps=30),
    "sparsegpt-joint": SparseGPT(bias="joint"),
    "adaprune-joint": AdaPrune(bias="joint"),
    "alps-keep": ALPS(bias="keep"),
}


FITTING = [name for name in METHODS if name not in ("magnitude", "wanda")]


# With little damping, for statements about the error on the calibration tokens themselves.
SHARP = {
    name: replace(method, damping=0.01) if name in FITTING and not method.needs_sample else method
    for name, method in METHODS.items()
}


SHARP["adaprune-adam"] = AdaPrune(solver="adam", steps=600)
PATTERNS = ["2:4", "1:4", "3:5", "4:8", "2:4-transposable", "unstructured:0.5", "block:4:0.5", "block:4x4:0.5", "dense"]


COMPARED = [pattern for pattern in PATTERNS if pattern != "dense"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(count: int = 300, width: int = IN, seed: int = 0) -> torch.Tensor:
    """Inputs that go together and have a mean, in fp64."""
    mixed = torch.randn(width, width, generator=generator(seed + 1), dtype=torch.float64) / width**0.5
    x = torch.randn(count, width, generator=generator(seed), dtype=torch.float64)
    return x @ (mixed + torch.diag(torch.linspace(0.1, 1, width, dtype=torch.float64))) + 0.3


def statistics(x: torch.Tensor) -> Inputs:
    return Inputs(x.T @ x, x.mean(0), len(x), x)


def layer(dtype: torch.dtype = torch.float32, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(OUT, IN, generator=generator(seed), dtype=torch.float64)
    return weight.to(dtype), torch.randn(OUT, generator=generator(seed + 1), dtype=torch.float64).to(dtype)


def error_of_outputs(weight, bias, found, x) -> float:
    """The relative error of the outputs, from the outputs."""
    bias = torch.zeros(len(weight), dtype=x.dtype) if bias is None else bias.to(x.dtype)
    after = bias if found.bias is None else found.bias.to(x.dtype)
    before = x @ weight.to(x.dtype).T + bias
    off = before - x @ found.weight.to(x.dtype).T - after
    return float(off.square().sum() / (x @ weight.to(x.dtype).T).square().sum())


H = torch.tensor(
    [[1.15, 0.7, 0.44, 0.05], [0.7, 1.22, 0.62, 0.08], [0.44, 0.62, 1.05, 0.78], [0.05, 0.08, 0.78, 1.72]],
    dtype=torch.float64,
)


ROW = torch.tensor([[0.9, -0.6, 0.7, 0.5]], dtype=torch.float64)


SMALL = Inputs(H, torch.zeros(4, dtype=torch.float64), 100)


def absolute(found) -> float:
    return float((((ROW - found.weight) @ H) * (ROW - found.weight)).sum())
