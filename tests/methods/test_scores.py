"""Scores other than magnitude: what is kept goes by the squared gradients that the optimizer remembers."""

import pytest
import torch
from torch import nn

from nxm_hf import NxMConfig, attach
from nxm_hf.engine.optimizer_state import Moments
from nxm_hf.layers.plan import Layer
from nxm_hf.methods.schedules import Clock
from nxm_hf.methods.scores import SCORES, best_mask, nearest_mask, scored
from nxm_hf.patterns import parse
from tests.support.references import top
from tests.support.scores import Remembered
from tests.support.toy_training import Toy, adamw, loss_at, same, train, weights

STEPS, WARM = 12, 6


def kept(weight, squares, pattern="2:4", scores="fisher"):
    clock = Clock(0, 1, moments=Remembered(squares and torch.tensor([squares])))
    return best_mask(torch.tensor([weight]), parse(pattern), scores, clock).int().tolist()[0]


def test_a_small_weight_with_large_gradients_is_worth_more_than_a_large_one_without():
    weight = [1.0, -2.0, 3.0, 4.0]
    assert kept(weight, [100.0, 1.0, 0.04, 1.0]) == [1, 0, 0, 1]  # 10, 2, 0.6, 4
    assert kept(weight, [100.0, 1.0, 0.04, 1.0], scores="magnitude") == [0, 0, 1, 1]
    assert kept(weight, [0.01, 16.0, 0.04, 1.0]) == [0, 1, 0, 1]  # 0.1, 8, 0.6, 4
    assert kept(weight, [0.01, 16.0, 0.04, 1.0], "1:4") == [0, 1, 0, 0]


def test_where_no_gradient_was_seen_the_larger_weights_stay():
    assert kept([1.0, -2.0, 3.0, 4.0], None) == [0, 0, 1, 1]
    assert kept([1.0, -2.0, 3.0, 4.0], [0.0] * 4) == [0, 0, 1, 1]
    assert kept([1.0, -2.0, 3.0, 4.0], [1e-12, 0.0, 0.0, 0.0]) == [1, 0, 0, 1]


def test_scores_of_any_tensor_are_its_magnitudes_in_the_metric_that_is_asked_for():
    tensor = torch.tensor([[1.0, -2.0, 3.0, -4.0]], requires_grad=True)
    squares = torch.tensor([[4.0, 9.0, 0.0, 0.25]], dtype=torch.float64)  # 2, 6, 0, 2
    clock = Clock(0, 1, moments=Remembered(squares))
    for found in (scored(tensor, "magnitude", clock), scored(tensor, "fisher", Clock(0, 1))):
        assert found.tolist() == [[1.0, 2.0, 3.0, 4.0]] and not found.requires_grad
    found = scored(tensor, "fisher", clock)
    assert found[0].tolist() == pytest.approx([2.0, 6.0, 3e-12, 2.0]) and not found.requires_grad
    for metric, mask in (("magnitude", [False, False, True, True]), ("fisher", [True, True, False, False])):
        found = nearest_mask(tensor, parse("2:4"), metric, clock)
        assert found[0].tolist() == mask


def test_squares_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        kept([1.0, 2.0, 3.0, 4.0], [1.0, float("nan"), 1.0, 1.0])


@pytest.mark.parametrize("text", ["2:4-transposable", "block:2x2:0.5", "2:4", "unstructured:0.3"])
def test_fisher_keeps_the_largest_sum_of_squares_and_magnitude_the_largest_sum(text):
    pattern, weight = parse(text), torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    squares = torch.rand(16, 16, generator=torch.Generator().manual_seed(1))
    clock = Clock(0, 1, moments=Remembered(squares))
    lost = weight.double().square() * squares
    best = float((lost * ~best_mask(weight, pattern, "fisher", clock)).sum())
    for seed in range(30):
        other = pattern.mask(torch.rand(16, 16, generator=torch.Generator().manual_seed(seed)))
        assert best <= float((lost * ~other).sum())
    assert best <= float((lost * ~pattern.mask(weight.abs() * squares.sqrt())).sum()) * (1 + 1e-6)
    assert torch.equal(best_mask(weight, pattern, "magnitude", clock), pattern.largest(weight))


def by_hand(make_optimizer, running):
    """Dense for WARM steps; then pruned by |W| and the mean of squared gradients, kept up beside the optimizer."""
    model = Toy()
    optimizer = make_optimizer(model)
    squares = [torch.zeros_like(weight) for weight in weights(model)]
    masks = None
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_at(step, model).backward()
        for number, linear in enumerate(model.linears):
            if masks:
                linear.weight.grad *= masks[number]
            squares[number] = running(squares[number], linear.weight.grad)
        optimizer.step()
        if step + 1 == WARM:
            pairs = zip(weights(model), squares, strict=True)
            masks = [top(weight.abs() * mean.sqrt(), "2:4") for weight, mean in pairs]
        for mask, linear in zip(masks or (), model.linears, strict=False):
            linear.weight.data *= mask
    return weights(model), masks


@pytest.mark.parametrize(
    ("make_optimizer", "running"),
    [
        (adamw, lambda mean, g: 0.999 * mean + 0.001 * g * g),
        (lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01), lambda mean, g: 0.99 * mean + 0.01 * g * g),
        (lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05), lambda mean, g: mean + g * g),
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), lambda mean, g: torch.ones_like(g)),
    ],
    ids=["adamw", "rmsprop", "adagrad", "sgd keeps none"],
)
def test_asp_after_a_warm_up_goes_by_the_gradients_of_the_warm_up(make_optimizer, running):
    expected, masks = by_hand(make_optimizer, running)
    model = Toy()
    optimizer = make_optimizer(model)
    engine = attach(model, optimizer, NxMConfig("asp", settings={"scores": "fisher"}, warmup=0.5), total_steps=STEPS)
    for step in train(model, optimizer, 0, STEPS):
        if step == WARM - 1:
            early = weights(model)
            with engine.deployed():  # while it warms up, by what is known so far
                shown = weights(model)
            assert same(weights(model), early)
            known = [_squares(optimizer, linear.weight) for linear in model.linears]
            expected_now = [
                weight * top(weight.abs() * mean.sqrt(), "2:4") for weight, mean in zip(early, known, strict=True)
            ]
            assert all(torch.equal(*pair) for pair in zip(shown, expected_now, strict=True))
    engine.finish()
    for weight, mask, other in zip(weights(model), masks, expected, strict=True):
        assert torch.equal(weight != 0, mask)
        torch.testing.assert_close(weight, other)
    by_size = [top(weight.abs(), "2:4") for weight in weights(_dense(make_optimizer))]
    differ = any(not torch.equal(one, other) for one, other in zip(masks, by_size, strict=True))
    assert differ == (not isinstance(optimizer, torch.optim.SGD))


def _squares(optimizer, weight):
    """What the optimizer keeps under one name or another; ones where it keeps nothing."""
    names = ("exp_avg_sq", "square_avg", "sum")
    found = [optimizer.state[weight][name] for name in names if name in optimizer.state[weight]]
    return found[0] if found else torch.ones_like(weight)


def _dense(make_optimizer):
    model = Toy()
    for _ in train(model, make_optimizer(model), 0, WARM):
        pass
    return model


def ends(recipe, **fields):
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, NxMConfig(recipe, **fields), total_steps=STEPS)
    for _ in train(model, optimizer, 0, STEPS):
        pass
    engine.finish()
    return weights(model)


@pytest.mark.parametrize("scores", SCORES)
def test_admm_without_a_pull_that_settles_is_asp_with_a_warm_up(scores):
    admm = ends("admm", settings={"rho": 0.0, "scores": scores}, settle=0.5)
    assert same(admm, ends("asp", settings={"scores": scores}, warmup=0.5))
    other = {"magnitude": "fisher", "fisher": "magnitude"}[scores]
    assert not same(admm, ends("admm", settings={"rho": 0.0, "scores": other}, settle=0.5))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8-transposable", "unstructured:0.5", "block:4:0.5"])
def test_every_pattern_holds_whatever_the_scores_are(pattern):
    for weight in ends("admm", pattern=pattern, settings={"scores": "fisher"}):
        assert parse(pattern).violations(weight) == 0
        assert weight.count_nonzero() == parse(pattern).kept(weight.shape)


def test_admm_prunes_by_gradients_only_where_its_strength_is_left_to_us():
    assert NxMConfig("admm").method(parse("2:4")).method.scores == "fisher"
    for settings in ({"rho": 0.01}, {"penalty": "decoupled"}, {"scores": "magnitude"}):
        assert NxMConfig("admm", settings=settings).method(parse("2:4")).method.scores == "magnitude"


def test_moments_that_are_no_numbers_for_single_weights_are_not_used():
    model = nn.Linear(4, 4)
    layer = Layer("layer", "other", model, model.weight)
    for name in ("AdamW", "AdamW8bit", "Adafactor"):
        optimizer = type(name, (torch.optim.AdamW,), {})(model.parameters())
        assert Moments(optimizer, layer).squares is None  # before the first step
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        assert (Moments(optimizer, layer).squares is not None) == (name == "AdamW")


# -- what is refused -------------------------------------------------------------------------------------------------


def test_without_dense_steps_nothing_is_known_of_gradients_and_that_is_said():
    with pytest.raises(ValueError, match=r"asp with .*fisher.* got warmup=0\. Write warmup=0\.5"):
        NxMConfig("asp", settings={"scores": "fisher"})
    with pytest.raises(ValueError, match=r"scores of admm must be one of 'auto', 'magnitude', .*; got 'wander'"):
        NxMConfig("admm", settings={"scores": "wander"})
