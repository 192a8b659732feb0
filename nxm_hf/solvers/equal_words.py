"""Comparison of arrays of 64-bit words. NumPy writes a flag for each word; a kernel, where one is loaded, does not."""

from collections.abc import Callable

import numpy as np
import torch

from nxm_hf.solvers import cpu

Comparison = Callable[[np.ndarray, np.ndarray], object]  # whether two arrays of uint64, of one size, are equal
_LARGE = 2**17  # words, as in a block of a file


def comparison() -> Comparison:
    """Return the fastest function here that compares arrays of uint64 in the machine's byte order."""
    if not cpu.BACKEND.is_loaded or not cpu.BACKEND.available(torch.empty(_LARGE, device="cpu")):
        return np.array_equal
    run = cpu.BACKEND.kernels.equal_words()
    return run if cpu.BACKEND.passes("comparison of words", comparison_is_right, run) else np.array_equal


def comparison_is_right(compare: Comparison) -> bool:
    """Return whether a function sees every bit that differs, wherever it stands.

    Args:
        compare: The function.
    """
    for size in (1, 64, 1003):
        words = np.random.default_rng(0).integers(0, 2**64, size, np.uint64)
        if not compare(words, words.copy()):
            return False
        for bit in range(64):
            for at in {0, size - 1, 17 * bit % size}:
                other = words.copy()
                other[at] ^= np.uint64(1 << bit)
                if compare(words, other):
                    return False
    return bool(compare(words[:0], words[:0]))
