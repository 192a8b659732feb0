"""Products with 2:4 weights on GPUs: which layers CUTLASS and cuSPARSELt can compute here, and how they are built."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nxm_hf.inference.algorithms import AlgorithmCache, Installation, Product, cache_folder, rounded_tokens
from nxm_hf.inference.candidates import Candidate
from nxm_hf.inference.semi_structured import CUSPARSELT, Library, SemiStructuredLinear
from nxm_hf.solvers import self_test

CAPABILITY = (8, 0)  # of the first GPUs that multiply 2:4 weights
MOST_KEPT = 2  # of four entries; a group of eight with two of them holds 2:4 as well
TOKENS = (8, 72)  # of the self-test


@dataclass(frozen=True)
class GPU:
    """Describe a GPU and its libraries.

    Args:
        name: The name of the GPU.
        capability: Its compute capability.
        has_cusparselt: Whether torch can call cuSPARSELt.
    """

    name: str
    capability: tuple[int, int]
    has_cusparselt: bool

    @classmethod
    def of(cls, device: torch.device) -> "GPU":
        """Describe a GPU of this machine.

        Args:
            device: The GPU.
        """
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        return cls(name, capability, torch.backends.cusparselt.is_available())


def refusal(library: Library, candidate: Candidate, gpu: GPU) -> str | None:
    """Return why a library cannot compute a layer on a GPU, or None if it should be able to.

    Args:
        library: The library.
        candidate: The layer, which holds a pattern.
        gpu: The GPU.
    """
    assert candidate.pattern is not None
    kernel, dtype = library.kernel, str(candidate.dtype).removeprefix("torch.")
    rows, columns = candidate.shape
    if candidate.pattern[0] > MOST_KEPT:
        return f"it holds {candidate.pattern_text}, and {kernel.name} computes 2:4 alone"
    if dtype not in kernel.dtypes:
        return f"{kernel.name} takes no {dtype}: load the model with dtype=torch.bfloat16"
    if not kernel.takes(candidate.shape):
        return f"{kernel.name} takes multiples of {kernel.rows}x{kernel.columns}, and it is {rows}x{columns}"
    if gpu.capability < CAPABILITY:
        have, need = (".".join(map(str, version)) for version in (gpu.capability, CAPABILITY))
        return f"{gpu.name} has compute capability {have}, and 2:4 needs {need}"
    if library is CUSPARSELT and not gpu.has_cusparselt:
        return "this torch comes without cuSPARSELt"
    return None


def obstacle(library: Library, candidate: Candidate) -> str | None:
    """Return why a library cannot compute a layer here, or None if it can. It is tested on the GPU once.

    Args:
        library: The library.
        candidate: The layer, on a GPU.
    """
    reason = refusal(library, candidate, GPU.of(candidate.device))
    if reason is None and not works(library, candidate.device, candidate.dtype):
        return f"{library.kernel.name} failed its self-test here"
    return reason


def build(library: Library, candidate: Candidate, tokens: Sequence[int]) -> nn.Module:
    """Return a module that computes a layer by a library.

    Args:
        library: The library.
        candidate: The layer.
        tokens: The numbers of tokens that its algorithms are searched for, if the library has several.
    """
    layer = SemiStructuredLinear(candidate.matrix(), candidate.bias, library)
    if library is CUSPARSELT:
        search_algorithms(layer, tokens, _known(Installation.of(candidate.device), cache_folder()))
    return layer.train(candidate.module.training)


@cache
def _known(installation: Installation, folder: Path) -> AlgorithmCache:
    """Return the one cache of this process, so that a search is not repeated where no file can be written."""
    return AlgorithmCache(installation, folder)


def search_algorithms(layer: SemiStructuredLinear, tokens: Sequence[int], known: AlgorithmCache) -> None:
    """Let a layer of cuSPARSELt use the fastest algorithm for each number of tokens.

    Args:
        layer: The layer.
        tokens: The numbers of tokens.
        known: The algorithms that were found before.
    """
    shape, dtype = (layer.out_features, layer.in_features), layer.packed.dtype

    def search(count: int) -> int:
        inputs = torch.randn(count, layer.in_features, device=layer.packed.device).to(dtype)
        return torch._cslt_sparse_mm_search(layer.packed, inputs.t(), bias=layer.bias, transpose_result=True)

    found = []
    for count in sorted({rounded_tokens(each) for each in tokens}):
        product = Product(dtype, shape, layer.bias is not None, count)
        found.append((count, known.find(product, partial(search, count))))
    layer.use_algorithms(found)


@cache
def works(library: Library, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the products of a library are right here. A warning is logged if they are not.

    Args:
        library: The library.
        device: The GPU.
        dtype: The type of the weight.
    """
    name = f"product of {library.kernel.name} with 2:4 in {dtype} on {device}"
    return self_test.passes(name, lambda: _is_right(library, device, dtype))


@torch.no_grad()
def _is_right(library: Library, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether products are those of torch in double precision, up to rounding."""
    rows, columns = 2 * library.kernel.rows, 2 * library.kernel.columns
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu")

    weight = draw(rows, columns // 4, 4)
    dropped = torch.rand(weight.shape, generator=generator, device="cpu").argsort(-1) >= 2
    weight, bias = weight.masked_fill(dropped, 0).flatten(1).to(device, dtype), draw(rows).to(device, dtype)
    for own_bias in (bias, None):
        layer = SemiStructuredLinear(weight, own_bias, library)
        for tokens in TOKENS:
            x = draw(tokens, columns).to(device, dtype)
            own = torch.zeros_like(bias) if own_bias is None else own_bias
            exact = F.linear(x.double(), weight.double(), own.double())
            size = F.linear(x.double().abs(), weight.double().abs(), own.double().abs())
            if bool(((layer(x) - exact).abs() > torch.finfo(dtype).eps * size).any()):
                return False
    return True
