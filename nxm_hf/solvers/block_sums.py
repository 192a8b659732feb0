"""Sums of the columns and the rows of a block of 64-bit integers, of which the digest of a large file is made.

NumPy reads a block twice. A kernel reads it once; it is used where kernels are loaded already, because its import
takes as long as the sums of ten gigabytes.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch

from nxm_hf.solvers import cpu

Summation = Callable[[np.ndarray, np.ndarray], object]  # (block, sums): write the sums of all columns, then of all rows


def summation(shape: tuple[int, int]) -> Summation:
    """Return the fastest function here that sums up blocks, modulo 2^64.

    Args:
        shape: The rows and columns of a block.

    Returns:
        A function of a block of little-endian uint64, and of an array for its sums: those of columns, then of rows.
    """
    with_numpy = sum_up
    if not cpu.BACKEND.is_loaded or sys.byteorder != "little":
        return with_numpy
    if not cpu.BACKEND.available(torch.empty(shape, device="cpu")):
        return with_numpy
    run = cpu.BACKEND.kernels.block_sums(*shape)
    passes = cpu.BACKEND.passes(f"sums of blocks of {shape}", sums_are_right, run, shape)
    return run if passes else with_numpy


def sum_up(block: np.ndarray, sums: np.ndarray) -> None:
    """Sum up a block with NumPy.

    Args:
        block: Little-endian uint64.
        sums: Where to write the sums of columns, then of rows.
    """
    columns = block.shape[1]
    block.sum(0, out=sums[:columns])
    block.sum(1, out=sums[columns:])


def sums_are_right(run: Summation, shape: tuple[int, int]) -> bool:
    """Return whether a kernel sums up a block as NumPy does.

    Args:
        run: The kernel.
        shape: The rows and columns of a block.
    """
    block = np.random.default_rng(0).integers(0, 2**64, shape, np.uint64)
    expected, found = np.zeros((2, sum(shape)), np.uint64)
    sum_up(block, expected)
    run(block, found)
    return bool((expected == found).all())
