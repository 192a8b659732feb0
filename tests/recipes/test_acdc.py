"""`acdc`: its turns."""

import math

import pytest
import torch

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.methods.schedules import Clock
from nxm_hf.patterns import NM, Dense
from tests.support.recipe_runs import attached
from tests.support.toy_training import OPTIMIZERS, Toy, train, weights


def sparse_steps(period, total):
    """Which steps, counted from 1, train a sparse weight; a dense turn begins at what the sparse one left."""
    run = attached(NxMConfig("acdc", settings={"period": period}), "sgd", total)
    dense = NM(2, 4).violations
    return [t for t, (used, trained, _) in enumerate(run, 1) if not dense(used[0]) and not dense(trained[0])]


@pytest.mark.parametrize(
    ("period", "total", "sparse"),
    [
        (0.5, 20, range(11, 21)),  # two turns
        (0.25, 20, [*range(6, 11), *range(16, 21)]),  # four
        (1 / 3, 30, range(21, 31)),  # three: the first is dense, so is the one after it
        (0.2, 20, [*range(9, 13), *range(17, 21)]),  # five: dense, dense, sparse, dense, sparse
        (0.3, 20, [*range(3, 9), *range(15, 21)]),  # three and a bit, which is at the start
        (0.4, 20, range(13, 21)),  # two and a bit
    ],
)
def test_the_turns_of_acdc_are_a_period_long_the_first_dense_and_the_last_sparse(period, total, sparse):
    assert sparse_steps(period, total) == list(sparse)


@pytest.mark.parametrize("total", range(1, 41))
@pytest.mark.parametrize("period", [0.05, 0.07, 0.1, 0.29, 0.3, 1 / 3, 0.5])
def test_whatever_the_length_acdc_begins_dense_and_ends_sparse(period, total):
    pattern = recipes.acdc(NM(2, 4), period).pattern
    turns = [pattern(Clock(t, total)) for t in range(total)]
    assert turns[-1] == NM(2, 4)
    assert turns[0] == Dense() or total == 1
    last = next((i for i, turn in enumerate(reversed(turns)) if turn == Dense()), total)
    assert total == 1 or last == max(math.floor(period * total + 1e-9), 1)


def test_before_its_start_acdc_is_dense():
    """A resumed run may stand there whose warm-up grew with its length."""
    assert {recipes.acdc(NM(2, 4), period).pattern(Clock(t, 20)) for t in range(-30, 1) for period in (0.25, 0.2)} == {
        Dense()
    }


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_acdc_clears_moments_where_its_mask_changed_and_nowhere_else(optimizer):
    model = Toy()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    engine = attach(model, stepper, NxMConfig("acdc", settings={"period": 0.25}), 16)
    slots = {"momentum": ["momentum_buffer"], "adamw": ["exp_avg", "exp_avg_sq"]}[optimizer]
    pruned = [torch.zeros_like(w, dtype=torch.bool) for w in weights(model)]
    for done in train(model, stepper, 0, 15):
        masks = [~mask for name, mask in engine.state_dict().items() if name.endswith("/mask")]
        turned = done in (4, 8, 12)
        for linear_, mask, before in zip(model.linears, masks, pruned, strict=True):
            changed = mask ^ before
            assert bool(changed.any()) == turned
            for slot in slots:
                moment = stepper.state[linear_.weight][slot]
                assert not moment[changed].any()
                assert (moment[~(changed | mask)] != 0).all()
        pruned = masks


@pytest.mark.parametrize("period", [0, -1, 0.6, "long", True])
def test_a_period_that_leaves_no_turns_is_an_error(period):
    with pytest.raises(ValueError, match="period of acdc"):
        NxMConfig("acdc", settings={"period": period})
