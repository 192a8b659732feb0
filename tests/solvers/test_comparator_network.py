"""Comparison networks hold no comparator that their ranks do not need. That they sort is a law of `test_nm_sort.py`."""

import torch

from nxm_hf.solvers.comparator_network import network

torch.set_num_threads(1)


def test_the_network_leaves_out_what_its_answer_does_not_need():
    halves = {(n, m): sum(a + b for *_, a, b in network((n - 1,), m)) for n, m in ((1, 4), (2, 4), (4, 8))}
    assert halves == {(1, 4): 3, (2, 4): 7, (4, 8): 27}
