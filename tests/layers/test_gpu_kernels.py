"""The 2:4 kernels of GPUs: what torch says that they take."""

import pytest
import torch

from nxm_hf.layers.gpu_kernels import FLOAT_CUSPARSELT, FLOAT_CUTLASS, GPU_KERNELS

THEIRS = {
    "CUTLASS": torch.sparse.SparseSemiStructuredTensorCUTLASS,
    "cuSPARSELt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
}


@pytest.mark.parametrize("name", THEIRS)
def test_the_kernels_take_the_shapes_that_torch_names(name):
    """Pitfall 12: the shapes that each kernel takes, as torch has them."""
    ours = {
        getattr(torch, dtype): (kernel.rows, kernel.columns)
        for kernel in GPU_KERNELS
        if kernel.name == name
        for dtype in kernel.dtypes
    }
    constraints = THEIRS[name]._DTYPE_SHAPE_CONSTRAINTS
    theirs = {dtype: (each.sparse_min_rows, each.sparse_min_cols) for dtype, each in constraints.items()}
    theirs.pop(torch.float32, None)  # CUTLASS has one, and it is for 1:2
    assert ours == theirs


@pytest.mark.parametrize("kernel", [FLOAT_CUTLASS, FLOAT_CUSPARSELT], ids=lambda kernel: kernel.name)
def test_a_kernel_takes_whole_multiples_of_its_sides(kernel):
    rows, columns = kernel.rows, kernel.columns
    assert all(kernel.takes(shape) for shape in ((rows, columns), (3 * rows, 2 * columns)))
    assert not any(kernel.takes(shape) for shape in ((0, columns), (rows + 1, columns), (rows, columns // 2)))
