"""The fit of one block: its settings, and what it minimises."""

from functools import partial

import pytest
import torch
from torch import nn

from nxm_hf import prune
from nxm_hf.pruning.reconstruction import BlockCall, Reconstruction, copied_arguments, dense_states, fit_block
from tests.support.models import assert_equal_weights, make_batches, make_bert


@pytest.mark.parametrize(
    "argument, message",
    [
        ("layer", r'reconstruct must be "none", "block", "model" or a mapping of settings; got \'layer\'. Write'),
        ({"step": 3}, "reconstruct has no setting 'step'. It has steps, learning_rate, seed, scope"),
        ({"steps": 0}, "steps of reconstruct must be a whole number of at least 1; got 0. Write steps=300"),
        ({"learning_rate": 0}, "needs a learning_rate above 0; got 0. Write learning_rate=0.01"),
        ({"learning_rate": "fast"}, "learning_rate of reconstruct must be a number"),
        ({"scope": "none"}, "scope of reconstruct must be one of 'block', 'model'; got 'none'"),
        ({"seed": 0.5}, "seed of reconstruct must be a whole number; got 0.5. Write seed=0"),
    ],
)
def test_a_wrong_argument_is_an_error_and_changes_nothing(argument, message):
    model = make_bert()
    with pytest.raises(ValueError, match=message):
        prune(model, "2:4", "magnitude", make_batches("bert"), reconstruct=argument)
    assert_equal_weights(model, make_bert())


def test_reconstruction_without_calibration_data_is_an_error():
    with pytest.raises(ValueError, match=r"Reconstruction fits blocks .*--calibration texts.txt"):
        prune(make_bert(), reconstruct="block")


def linear_problem():
    """A block of one matrix, its mask, a call with padding, and the best kept weights by least squares."""
    noise = torch.Generator().manual_seed(0)
    block, x = nn.Linear(8, 4, bias=False), torch.randn(2, 30, 8, generator=noise)
    with torch.no_grad():
        block.weight.copy_(torch.randn(4, 8, generator=noise))
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, 20:] = False
    kept = torch.rand(4, 8, generator=noise) > 0.5
    target = block(x).detach()
    best = torch.zeros(4, 8)
    for row in range(4):
        columns = kept[row].nonzero().squeeze(1)
        best[row, columns] = torch.linalg.lstsq(x[mask][:, columns], target[mask][:, row]).solution
    x[1, 20:], target[1, 20:] = 1e3, -1e3  # padding, which must not be fitted
    return block, kept, BlockCall((x,), {}, target, mask), best


def test_a_fit_of_one_matrix_ends_at_the_least_squares_of_the_tokens():
    block, kept, call, best = linear_problem()
    before = block.weight.detach().clone()
    start = {"weight": torch.where(kept, before, 0.0)}
    fitted = fit_block(block, start, {"weight": kept}, [call], Reconstruction(steps=600, learning_rate=0.05))
    torch.testing.assert_close(fitted.tensors["weight"], best, rtol=1e-3, atol=1e-3)
    assert torch.equal(block.weight, before) and torch.equal(start["weight"], torch.where(kept, before, 0.0))
    mask, target = call.mask, call.target
    for weight, error in ((start["weight"], fitted.before), (best, fitted.after)):
        lost = (call.args[0][mask] @ weight.T - target[mask]).square().sum() / target[mask].square().sum()
        assert error == pytest.approx(float(lost), rel=1e-3)


def test_a_learning_rate_is_a_share_of_the_size_of_the_weights():
    block, kept, call, _ = linear_problem()
    small = nn.Linear(8, 4, bias=False)
    small.weight.data = block.weight.data / 64
    small_call = BlockCall(call.args, {}, call.target / 64, call.mask)
    weights = [
        fit_block(one, {"weight": torch.where(kept, one.weight.detach(), 0.0)}, {"weight": kept}, [data], settings)
        for settings in [Reconstruction(steps=5)]
        for one, data in ((block, call), (small, small_call))
    ]
    torch.testing.assert_close(weights[0].tensors["weight"], weights[1].tensors["weight"] * 64, rtol=1e-2, atol=1e-2)


def test_arguments_are_copied_before_a_block_can_change_them():
    x = torch.zeros(2)
    args, kwargs = copied_arguments(partial(print, x, mask=[x, None], flag=True))
    states = dense_states({"index": torch.tensor([1]), "states": x})
    x += 1
    assert args[0].sum() == kwargs["mask"][0].sum() == states.sum() == 0
    assert kwargs["mask"][1] is None and kwargs["flag"] is True


def test_a_negative_weight_that_is_rounded_to_zero_becomes_a_positive_zero():
    block = nn.Linear(1, 1, bias=False).half()
    with torch.no_grad():
        block.weight.fill_(-6e-8)  # the smallest number of fp16
    x = torch.ones(1, 4, 1)
    call, kept = BlockCall((x,), {}, x * -1e-8, None), {"weight": torch.ones(1, 1, dtype=torch.bool)}
    fitted = fit_block(block, {"weight": block.weight.detach()}, kept, [call], Reconstruction(100, 0.05))
    assert fitted.tensors["weight"] == 0 and not torch.signbit(fitted.tensors["weight"]).any()
