"""Dense training: the weight and its gradient are left alone until the end."""

import torch

from nxm_hf.methods import DenseTraining
from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import NM


def test_a_step_of_dense_training_changes_nothing_and_finish_prunes():
    method, weight = DenseTraining(NM(2, 4)), torch.tensor([[1.0, -4.0, 3.0, 2.0]])
    state = method.init(weight, Clock(0, 1))
    weight.grad = torch.ones_like(weight)
    method.before_step(weight, state, Clock(0, 1))
    method.after_step(weight, state, Clock(1, 1))
    assert state == {} and weight.tolist() == [[1.0, -4.0, 3.0, 2.0]] and weight.grad.tolist() == [[1.0] * 4]
    mask = method.finish(weight, state, Clock(1, 1))
    assert weight.tolist() == [[0.0, -4.0, 3.0, 0.0]] and mask.tolist() == [[False, True, True, False]]
