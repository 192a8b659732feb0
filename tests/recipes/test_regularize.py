"""`regularize`: how much it shrinks."""

import torch

from nxm_hf import NxMConfig, attach
from tests.support.references import top
from tests.support.toy_training import Toy, train, weights


def test_regularize_shrinks_by_the_same_part_at_any_learning_rate():
    """It is outside the optimizer: with lr = 0 pruned weights are (1 - shrink)^t of what they were."""
    model = Toy(dtype=torch.float64)
    start = weights(model)
    stepper = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = attach(model, stepper, NxMConfig("regularize", settings={"shrink": 0.1}), 5)
    for _ in train(model, stepper, 0, 5):
        pass
    for (_, dense), before in zip(engine.trained_weights(), start, strict=True):
        expected = torch.where(top(before.abs(), "2:4"), before, before * 0.9**5)
        torch.testing.assert_close(dense, expected)
