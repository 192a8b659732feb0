"""GPU kernels: the 2:4 products that torch has for GPUs, and the weights that each takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPUKernel:
    """A 2:4 kernel of `torch.sparse`.

    Args:
        name: Name of the library.
        dtypes: Types of weights that it takes.
        rows: The number of rows must be a multiple of this.
        columns: The number of columns must be a multiple of this.
    """

    name: str
    dtypes: tuple[str, ...]
    rows: int
    columns: int

    def takes(self, shape: tuple[int, int]) -> bool:
        """Return True if a weight of this shape fits.

        Args:
            shape: Shape of the weight, [out, in].
        """
        return 0 not in shape and shape[0] % self.rows == 0 and shape[1] % self.columns == 0

    def __str__(self) -> str:
        return f"{self.name} {' or '.join(self.dtypes)}, multiples of {self.rows}x{self.columns}"


FLOAT_CUTLASS = GPUKernel("CUTLASS", ("float16", "bfloat16"), 32, 64)
FLOAT_CUSPARSELT = GPUKernel("cuSPARSELt", ("float16", "bfloat16"), 16, 16)
GPU_KERNELS = (
    FLOAT_CUTLASS,
    GPUKernel("CUTLASS", ("int8",), 16, 128),
    FLOAT_CUSPARSELT,
    GPUKernel("cuSPARSELt", ("int8", "float8_e4m3fn"), 32, 32),
)
