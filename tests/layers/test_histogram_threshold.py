"""The threshold of scores in parts is that of the whole; here the parts are held by threads."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxm_hf.layers.histogram_threshold import BINS, keep_highest_of_all
from nxm_hf.solvers.unstructured_threshold import keep_highest


class Thread:
    """One of several threads, each of which holds a part."""

    def __init__(self, rank: int, barrier: Barrier, board: dict):
        self.rank, self._barrier, self._board, self.sent = rank, barrier, board, []

    def of_each(self, numbers):
        self.sent.append(numbers.nbytes)
        self._board[self.rank] = numbers
        self._barrier.wait()
        stacked = torch.stack([self._board[rank] for rank in range(self._barrier.parties)])
        self._barrier.wait()
        return stacked

    def total(self, numbers):
        return self.of_each(numbers).sum(0)


def together(parts: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Select the highest of all parts, each in a thread of its own."""
    barrier, board = Barrier(len(parts), timeout=60), {}
    with ThreadPoolExecutor(len(parts)) as pool:
        threads = [Thread(rank, barrier, board) for rank in range(len(parts))]
        return list(pool.map(keep_highest_of_all, parts, [count] * len(parts), threads))


@given(
    parts=st.lists(
        st.lists(st.sampled_from([-0.0, 0.0, -1.5, 1.5, 2.0, 1e-40, 3e38, float("inf")])), min_size=1, max_size=4
    ),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_parts_keep_what_one_process_keeps(parts, share, dtype):
    """Few values, so that many are equal; parts may be empty."""
    held = [torch.tensor(part, dtype=dtype) for part in parts]
    whole = torch.cat(held)
    if len(whole):
        count = round(share * len(whole))
        assert torch.equal(torch.cat(together(held, count)), keep_highest(whole, count))


@pytest.mark.parametrize("count", [0, 1, 13, 23, 24])
def test_parts_may_have_any_shape(count):
    parts = [torch.randn(3, 4), torch.zeros(0, 5), torch.randn(2, 3, 2).transpose(0, 2)]
    masks = together(parts, count)
    assert [mask.shape for mask in masks] == [part.shape for part in parts]
    flat = torch.cat([part.flatten() for part in parts])
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), keep_highest(flat, count))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_differ_in_their_last_bit_are_told_apart(sign, dtype):
    one = torch.ones((), dtype=dtype)
    larger = one.nextafter(2 * one)
    scores = torch.stack([one, larger, one] if sign > 0 else [-larger, -one, -larger])
    assert [mask.tolist() for mask in together(list(scores.split(1)), 1)] == [[False], [True], [False]]


def test_a_nan_in_one_part_is_refused_in_all():
    barrier, board = Barrier(2, timeout=60), {}
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([torch.nan])]
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(keep_highest_of_all, parts[i], 1, Thread(i, barrier, board)) for i in range(2)]
        for future in found:
            with pytest.raises(ValueError, match="hold 1 NaN"):
                future.result()


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 2), (torch.float32, 2), (torch.float64, 4)], ids=str)
@pytest.mark.parametrize(("count", "more"), [(2, 0), (3, 1)])
def test_processes_exchange_two_or_four_histograms_and_one_number_if_equal_scores_are_divided(
    dtype, digits, count, more
):
    """However many scores there are. Each histogram has a number for each bin, and the first one that of NaN."""
    board = {}
    thread = Thread(0, Barrier(1, timeout=60), board)
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0], dtype=dtype)
    assert keep_highest_of_all(scores, count, thread).nonzero().flatten().tolist() == [0, 1, 2][:: 2 - more]
    histograms, rest = thread.sent[:digits], thread.sent[digits:]
    assert histograms == [8 * (BINS + 1)] + [8 * BINS] * (digits - 1) and rest == [8] * more


@pytest.mark.parametrize("count", [0, 2])
def test_the_mask_is_made_where_the_scores_are_which_may_train(count):
    scores = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    with torch.device("meta"):
        mask = keep_highest_of_all(scores, count, Thread(0, Barrier(1, timeout=60), {}))
    assert (mask.device, mask.dtype) == (scores.device, torch.bool) and mask.tolist() == [count > 0, False, count > 0]
