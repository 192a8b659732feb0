"""Products with 2:4 weights on CPUs, in the place of those that torch has for GPUs alone.

They are slow and right. With them, all of our code for GPUs runs without one, and only the product itself is untried.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from nxm_hf.packing.format import pack, unpack
from nxm_hf.patterns import NM

TWO_OF_FOUR = NM(2, 4)


def compress(matrix: Tensor) -> Tensor:
    """Put kept entries and their places into one tensor, as cuSPARSELt does.

    Args:
        matrix: A matrix that holds 2:4, [out, in].
    """
    values, places = pack(matrix, TWO_OF_FOUR, "the matrix")
    return torch.cat([values, places.view(matrix.dtype)], 1)


def decompress(packed: Tensor) -> Tensor:
    """Return the matrix that was compressed.

    Args:
        packed: The kept entries and their places.
    """
    columns = packed.shape[1] * 16 // 9
    matrix = packed.new_empty(packed.shape[0], columns)
    values, places = packed.split([columns // 2, columns // 16], 1)
    unpack(values.contiguous(), places.contiguous().view(torch.uint8), TWO_OF_FOUR, out=matrix)
    return matrix


def cusparselt_mm(
    packed: Tensor,
    dense: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    transpose_result: bool = False,
    alg_id: int = 0,
    split_k: int = 1,
    split_k_mode: int = -1,
) -> Tensor:
    """Multiply as `torch._cslt_sparse_mm` does, and refuse what it refuses.

    Args:
        packed: The kept entries and their places.
        dense: The tokens, [in, tokens].
        bias: The bias.
        alpha: Not supported.
        out_dtype: Not supported.
        transpose_result: Whether to return [tokens, out].
        alg_id: The number of the algorithm, which changes nothing.
        split_k: Ignored.
        split_k_mode: Ignored.
    """
    assert alpha is None and out_dtype is None and dense.shape[1] % 8 == 0 and not dense.is_contiguous()
    result = decompress(packed).float() @ dense.float()
    result = result if bias is None else result + bias.float()[:, None]
    return (result.t() if transpose_result else result).contiguous().to(dense.dtype)


def cusparselt_search(
    packed: Tensor,
    dense: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    transpose_result: bool = False,
) -> int:
    """Return a number that tells how many tokens were given, in the place of that of the fastest algorithm.

    Args:
        packed: The kept entries and their places.
        dense: The tokens, [in, tokens].
        bias: The bias.
        alpha: Not supported.
        out_dtype: Not supported.
        transpose_result: Whether [tokens, out] will be asked for, as it is by our layers.
    """
    assert transpose_result and cusparselt_mm(packed, dense, bias, alpha, out_dtype, transpose_result).numel()
    return dense.shape[1].bit_length()


def cutlass_addmm(
    bias: Tensor | None,
    packed: Tensor,
    places: Tensor,
    dense: Tensor,
    alpha: float = 1,
    beta: float = 1,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply as `torch._sparse_semi_structured_addmm` does, and refuse what it refuses.

    Args:
        bias: The bias, or None.
        packed: The kept entries.
        places: Their places.
        dense: The tokens, [in, tokens].
        alpha: One.
        beta: One.
        out_dtype: Not supported.
    """
    assert alpha == beta == 1 and out_dtype is None and dense.shape[1] % 8 == 0
    result = sparse_semi_structured_to_dense_cutlass(packed, places).float() @ dense.float()
    result = result if bias is None else result + bias.float()[:, None]
    return result.to(dense.dtype)


def cutlass_mm(packed: Tensor, places: Tensor, dense: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """Multiply as `torch._sparse_semi_structured_mm` does.

    Args:
        packed: The kept entries.
        places: Their places.
        dense: The tokens, [in, tokens].
        out_dtype: Not supported.
    """
    return cutlass_addmm(None, packed, places, dense, out_dtype=out_dtype)


@contextmanager
def cpu_products() -> Iterator[None]:
    """Give the operators of torch these products on CPUs, in the body of a `with`."""
    products = {
        "_cslt_compress": compress,
        "_cslt_sparse_mm": cusparselt_mm,
        "_cslt_sparse_mm_search": cusparselt_search,
        "_sparse_semi_structured_mm": cutlass_mm,
        "_sparse_semi_structured_addmm": cutlass_addmm,
    }
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, product in products.items():
            library.impl(name, product, "CPU")
        yield
