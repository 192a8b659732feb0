"""Comparison networks hold no comparator that their ranks do not need. That they sort is a law of `test_nm_sort.py`."""

from itertools import product

import pytest
import torch

from nxm_hf.solvers.comparator_network import network, select

torch.set_num_threads(1)


def test_the_network_leaves_out_what_its_answer_does_not_need():
    halves = {(n, m): sum(a + b for *_, a, b in network((n - 1,), m)) for n, m in ((1, 4), (2, 4), (4, 8))}
    assert halves == {(1, 4): 3, (2, 4): 7, (4, 8): 27}


@pytest.mark.parametrize("m", range(1, 9))
def test_any_ranks_of_zeros_and_ones_are_those_of_a_sort(m):
    """The zero-one principle: a network that is right for every 0/1 input is right for every input."""
    inputs = torch.tensor(list(product([0, 1], repeat=m)), dtype=torch.int32).t()
    ordered = inputs.sort(0, descending=True).values
    for ranks in [(rank,) for rank in range(m)] + [(rank - 1, rank) for rank in range(1, m)] + [(m - 1, 0), range(m)]:
        found = select(inputs.clone().unbind(), torch.empty_like(inputs[0]), ranks)
        assert torch.equal(torch.stack(found), ordered[list(ranks)]), ranks


@pytest.mark.parametrize("m", [13, 16, 31, 32])
def test_ranks_of_many_numbers_with_ties_are_those_of_a_sort_and_only_given_memory_is_written(m):
    numbers = torch.randint(0, m, (m + 1, 50), generator=torch.Generator().manual_seed(0))
    ordered = numbers[:m].sort(0, descending=True).values
    *wires, spare = numbers.clone()
    memory = {wire.data_ptr() for wire in (*wires, spare)}
    for rank, found in zip((m // 2 - 1, m // 2), select(wires, spare, (m // 2 - 1, m // 2)), strict=True):
        assert torch.equal(found, ordered[rank]) and found.data_ptr() in memory


@pytest.mark.parametrize("m", [2, 5, 8, 12])
def test_a_comparator_wants_an_end_and_only_ends_that_a_later_one_or_the_answer_reads(m):
    for rank in range(m):
        needed = {rank}
        for high, low, want_max, want_min in reversed(network((rank,), m)):
            assert high < low and (want_max, want_min) == (high in needed, low in needed) != (False, False)
            needed |= {high, low}
