"""One-shot pruning of one layer: laws over all methods, and references in plain NumPy."""

import inspect
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch

from nxm_hf import pruners
from nxm_hf.patterns import parse
from nxm_hf.pruners import ALPS, AdaPrune, Inputs, Magnitude, SparseGPT, Wanda, output_error
from nxm_hf.pruners.adaprune import mean_absorption
from nxm_hf.pruners.alps import admm_search
from nxm_hf.pruners.hessian import Hessian
from nxm_hf.pruners.least_squares import least_squares
from tests.support.toy_training import has_negative_zeros, same

OUT, IN = 16, 40
METHODS = {
    **{name: kind() for name, kind in pruners.METHODS.items()},
    "adaprune-wanda": AdaPrune("wanda"),
    "adaprune-sparsegpt": AdaPrune("sparsegpt"),
    "adaprune-adam": AdaPrune(solver="adam", steps=30),
    "sparsegpt-joint": SparseGPT(bias="joint"),
    "adaprune-joint": AdaPrune(bias="joint"),
    "alps-keep": ALPS(bias="keep"),
}
FITTING = [name for name in METHODS if name not in ("magnitude", "wanda")]
# With little damping, for what is said of the error on the tokens themselves.
SHARP = {
    name: replace(method, damping=0.01) if name in FITTING and not method.needs_sample else method
    for name, method in METHODS.items()
}
SHARP["adaprune-adam"] = AdaPrune(solver="adam", steps=600)
PATTERNS = ["2:4", "1:4", "3:5", "4:8", "2:4-transposable", "unstructured:0.5", "block:4:0.5", "block:4x4:0.5", "dense"]
COMPARED = [pattern for pattern in PATTERNS if pattern != "dense"]


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(count: int = 300, width: int = IN, seed: int = 0) -> torch.Tensor:
    """Inputs that go together and have a mean, in fp64."""
    mixed = torch.randn(width, width, generator=noise(seed + 1), dtype=torch.float64) / width**0.5
    x = torch.randn(count, width, generator=noise(seed), dtype=torch.float64)
    return x @ (mixed + torch.diag(torch.linspace(0.1, 1, width, dtype=torch.float64))) + 0.3


def seen(x: torch.Tensor) -> Inputs:
    return Inputs(x.T @ x, x.mean(0), len(x), x)


def layer(dtype: torch.dtype = torch.float32, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(OUT, IN, generator=noise(seed), dtype=torch.float64)
    return weight.to(dtype), torch.randn(OUT, generator=noise(seed + 1), dtype=torch.float64).to(dtype)


def lost(weight, bias, found, x) -> float:
    """The relative error of the outputs, from the outputs."""
    bias = torch.zeros(len(weight), dtype=x.dtype) if bias is None else bias.to(x.dtype)
    after = bias if found.bias is None else found.bias.to(x.dtype)
    before = x @ weight.to(x.dtype).T + bias
    off = before - x @ found.weight.to(x.dtype).T - after
    return float(off.square().sum() / (x @ weight.to(x.dtype).T).square().sum())


ODD_INPUTS = {
    "plain": lambda x: x,
    "few": lambda x: x[:10],
    "one": lambda x: x[:1],
    "dead": lambda x: x * (torch.arange(IN) % 3 > 0),
    "half dead": lambda x: x * (torch.arange(IN) < IN // 2),
    "constant": lambda x: torch.where(torch.arange(IN) % 4 < 3, x, 1.0),
    "all constant": lambda x: torch.ones_like(x),
    "alike": lambda x: x[:, :1].expand_as(x).contiguous(),
    "outlier": lambda x: x * torch.where(torch.arange(IN) == 7, 1e6, 1.0),
    "tiny": lambda x: x * 1e-17,
    "huge": lambda x: x * 1e17,
    "none": lambda x: x * 0,
}
ODD_WEIGHTS = {
    "plain": lambda weight: weight,
    "half zero": lambda weight: weight * (weight > 0),  # and -0.0
    "zero rows": lambda weight: weight * (torch.arange(OUT) % 2)[:, None],
    "zero": lambda weight: weight * 0,
    "ties": lambda weight: weight.sign(),
}


@pytest.mark.parametrize("inputs", ODD_INPUTS)
@pytest.mark.parametrize("name", METHODS)
def test_whatever_the_inputs_the_result_holds_the_pattern_and_is_finite(name, inputs):
    x = ODD_INPUTS[inputs](tokens())
    for text in PATTERNS:
        check(METHODS[name], text, *layer(), seen(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weights", ODD_WEIGHTS)
@pytest.mark.parametrize("name", METHODS)
def test_whatever_the_weights_the_result_holds_the_pattern_and_is_finite(name, weights, dtype):
    weight, bias = layer(dtype)
    for text, with_bias in (("2:4", True), ("2:4-transposable", False), ("unstructured:0.5", True)):
        check(METHODS[name], text, ODD_WEIGHTS[weights](weight), bias if with_bias else None, seen(tokens()))


def check(method, text, weight, bias, inputs):
    pattern = parse(text)
    given = [weight, *([] if bias is None else [bias]), inputs.gram, inputs.mean, inputs.sample]
    before = [tensor.clone() for tensor in given]
    found = method(weight, bias, inputs, pattern)
    assert same(given, before), "a method may not touch what it is given"
    assert pattern.violations(found.weight) == 0 and found.weight.isfinite().all()
    assert found.mask.dtype == torch.bool and int(found.mask.sum()) == pattern.kept(weight.shape)
    assert pattern.violations(found.mask) == 0 and not (found.weight[~found.mask] != 0).any()
    assert not has_negative_zeros(found.weight)
    assert found.weight.dtype == weight.dtype and found.weight.shape == weight.shape
    assert found.bias is None or (bias is not None and found.bias.dtype == bias.dtype and found.bias.isfinite().all())


# The error of the outputs


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("text", COMPARED)
def test_every_method_that_fits_loses_less_than_magnitude(text, with_bias):
    x, (weight, bias) = tokens(2000), layer()
    weight, bias, pattern = 0.1 * weight, (bias if with_bias else None), parse(text)
    errors = {name: lost(weight, bias, method(weight, bias, seen(x), pattern), x) for name, method in SHARP.items()}
    for name in FITTING:
        assert errors[name] < 0.9 * errors["magnitude"], errors
    assert errors["adaprune-joint"] <= errors["adaprune-adam"]
    assert errors["adaprune-sparsegpt"] <= errors["sparsegpt"] * 1.001
    assert errors["alps-keep"] <= 1.02 * min(errors[name] for name in errors if "joint" not in name)


@pytest.mark.parametrize("name", METHODS)
def test_the_error_from_the_gram_matrix_is_that_of_the_outputs(name):
    x, (weight, bias) = tokens(), layer(torch.float64)
    found = METHODS[name](weight, bias, seen(x), parse("2:4"))
    error = output_error(weight, found.weight, seen(x), bias, found.bias)
    assert error == pytest.approx(lost(weight, bias, found, x), rel=1e-9)
    assert (error == output_error(weight, found.weight, seen(x))) == (found.bias is None)


def test_an_error_is_nothing_where_nothing_is_lost_and_all_where_nothing_was():
    (weight, _), zero = layer(), seen(tokens() * 0)
    assert output_error(weight, weight, seen(tokens())) == 0 == output_error(weight, weight * 0, zero)
    assert output_error(weight, weight * 0, seen(tokens())) == pytest.approx(1)
    assert output_error(weight * 0, weight, seen(tokens())) == float("inf")


# References: the worked examples of small matrices, and each method written down another way

H = torch.tensor(
    [[1.15, 0.7, 0.44, 0.05], [0.7, 1.22, 0.62, 0.08], [0.44, 0.62, 1.05, 0.78], [0.05, 0.08, 0.78, 1.72]],
    dtype=torch.float64,
)
ROW = torch.tensor([[0.9, -0.6, 0.7, 0.5]], dtype=torch.float64)
SMALL = Inputs(H, torch.zeros(4, dtype=torch.float64), 100)


def absolute(found) -> float:
    return float((((ROW - found.weight) @ H) * (ROW - found.weight)).sum())


def test_sparsegpt_gives_the_worked_example():
    found = SparseGPT(damping=0.01)(ROW, None, SMALL, parse("2:4"))
    assert found.weight.tolist()[0] == pytest.approx([0.9, 0, 0, 0.787388], abs=1e-6)
    assert absolute(found) == pytest.approx(0.288720, abs=1e-6)


@pytest.mark.parametrize("method", [AdaPrune("sparsegpt", damping=0.0, tolerance=1e-14), ALPS(0.0, tolerance=1e-14)])
def test_the_best_weights_of_the_worked_example_are_found(method):
    found = method(ROW, None, SMALL, parse("2:4"))
    assert found.weight.tolist()[0] == pytest.approx([0.789881, 0, 0, 0.792736], abs=1e-6)
    assert absolute(found) == pytest.approx(0.274784, abs=1e-6)


def test_wanda_gives_the_worked_example():
    weight = torch.tensor([[0.5, -0.4, 0.3, 0.2], [0.1, 0.6, -0.2, 0.5]])
    inputs = Inputs(torch.diag(torch.tensor([1, 2, 0.5, 4.0]).square()), torch.zeros(4), 10)
    assert Wanda()(weight, None, inputs, parse("2:4")).mask.int().tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert Magnitude()(weight, None, None, parse("2:4")).mask.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 1]]


def test_wanda_keeps_the_largest_shares_of_the_output():
    x, (weight, _) = tokens() * torch.linspace(0.1, 3, IN), layer()
    found = Wanda()(weight, None, seen(x), parse("3:5"))
    shares = np.abs(weight.double().numpy()) * np.linalg.norm(x.numpy(), axis=0)
    kept = np.argsort(-shares.reshape(OUT, -1, 5), axis=-1)[..., :3]
    mask = np.zeros((OUT, IN // 5, 5), bool)
    np.put_along_axis(mask, kept, True, axis=-1)
    assert found.mask.numpy().tolist() == mask.reshape(OUT, IN).tolist()
    assert torch.equal(found.weight[found.mask], weight[found.mask])


def test_absorption_shares_out_what_a_group_loses():
    mask = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0]]).bool()
    found = mean_absorption(torch.tensor([[0.8, -0.3, 0.5, 0.1, 1, 2, 3, 4]]), mask, 4)
    assert found.tolist()[0] == pytest.approx([0.7, 0, 0.4, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("moves", ["after", "joint", "keep"])
@pytest.mark.parametrize("text", ["2:4", "unstructured:0.3", "block:4x4:0.5"])
def test_adaprune_is_the_least_squares_of_numpy_row_by_row(text, moves, damping):
    x, (weight, bias) = tokens(), layer(torch.float64)
    method = AdaPrune(bias=moves, damping=damping, tolerance=1e-15)
    found = method(weight, bias, seen(x), parse(text))
    inputs = x.numpy() - (x.numpy().mean(0) if moves == "joint" else 0)
    weights = weight.numpy()
    pull = (damping * (inputs**2).sum(0).mean()) ** 0.5 * np.eye(IN)  # rows that ask each weight to stay as it is
    rows = np.concatenate([inputs, pull])
    for number, mask in enumerate(found.mask.numpy()):
        best = np.linalg.lstsq(rows[:, mask], rows @ weights[number], rcond=None)[0]
        assert found.weight[number].numpy()[mask] == pytest.approx(best, rel=1e-5, abs=1e-6)
    assert (found.bias is None) == (moves == "keep")
    if moves != "keep":
        off = (x @ (weight - found.weight).T + bias - found.bias).mean(0)
        assert off.abs().max() < 1e-10


@pytest.mark.parametrize("n, m", [(2, 4), (3, 5)])
def test_sparsegpt_is_the_surgeon_who_inverts_the_rest_of_the_matrix_at_every_column(n, m):
    """As wide as it takes for several of its blocks of columns."""
    x, width = tokens(400, 140), 140
    weight = torch.randn(3, width, generator=noise(3), dtype=torch.float64)
    found = SparseGPT(damping=0.02)(weight, None, seen(x), parse(f"{n}:{m}"))
    gram = (x.T @ x).numpy()
    gram += 0.02 * np.diag(gram).mean() * np.eye(width)
    inverses = [np.linalg.inv(gram[column:, column:]) for column in range(width)]
    freed = np.array([inverse[0, 0] for inverse in inverses])
    for number, row in enumerate(weight.numpy().copy()):
        for column, inverse in enumerate(inverses):
            if column % m == 0:
                group = slice(column, column + m)
                pruned = column + np.argsort(row[group] ** 2 / freed[group], kind="stable")[: m - n]
            if column in pruned:
                row[column:] -= row[column] / inverse[0, 0] * inverse[0]
                row[column] = 0
        assert found.weight[number].numpy() == pytest.approx(row, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("start", [0.1, 300.0], ids=["changing", "standing still at first"])
def test_alps_alternates_as_its_equations_say(start):
    """ADMM in the weights themselves, with an inverse per step, against the eigenvectors on scaled inputs."""
    x, (weight, _), pattern = tokens(), layer(torch.float64), parse("2:4")
    hessian = Hessian.from_inputs(seen(x), 0.01, centred=False)
    found = admm_search(weight, hessian, pattern, rho=start, steps=40)
    norms = hessian.matrix.diagonal()
    rho, restarts = start, True
    z = old = torch.where(pattern.mask(weight.abs() * norms.sqrt()), weight, 0)
    u = torch.zeros_like(z)
    for step in range(1, 41):
        system = hessian.matrix + rho * torch.diag(norms)
        v = (weight @ hessian.matrix + rho * (z - u) * norms) @ torch.linalg.inv(system)
        z = torch.where(pattern.mask((v + u).abs() * norms.sqrt()), v + u, 0)
        u = u + v - z
        if step % 3 == 0:
            share = ((z != 0) & (old == 0)).sum() / (z != 0).sum()
            old, restarts = z, restarts and share == 0
            if share == 0 and not restarts:
                break
            factor = 1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1 if share > 0 else 0.2
            rho, u = rho * factor, u / factor
    assert torch.equal(found.mask, z != 0)
    assert torch.allclose(found.weight, z, rtol=1e-6, atol=1e-9)


def test_alps_is_between_the_best_mask_of_all_and_the_best_of_its_candidates():
    x, weight = tokens(100, 8), torch.randn(6, 8, generator=noise(3), dtype=torch.float64)
    inputs, pattern = seen(x), parse("2:4")
    hessian = Hessian.from_inputs(inputs, 0.01, centred=False)
    found = SHARP["alps"](weight, None, inputs, pattern)
    pairs = [list(pair) for pair in combinations(range(4), 2)]
    masks = torch.zeros(36, 8, dtype=torch.bool)
    for mask, (left, right) in zip(masks, product(pairs, pairs), strict=True):
        mask[[*left, *(4 + place for place in right)]] = True
    for row, mine in zip(weight, found.weight, strict=True):
        rows = row.expand(36, 8)
        best = hessian.cost(rows - least_squares(rows, masks, rows, hessian, 1e-14)).min()
        cost = hessian.cost((row - mine)[None])
        assert best <= cost * (1 + 1e-6)
        for name in ("adaprune", "adaprune-wanda", "adaprune-sparsegpt", "sparsegpt"):
            theirs = SHARP[name](row[None], None, inputs, pattern).weight
            assert cost <= hessian.cost(row[None] - theirs) * (1 + 1e-3)


@pytest.mark.parametrize("centred", [True, False])
def test_the_factor_of_the_curvature_is_that_of_its_inverse(centred):
    hessian = Hessian.from_inputs(seen(tokens()), 0.01, centred)
    inverse = np.linalg.inv(hessian.matrix.numpy())
    assert hessian.inverse.numpy() == pytest.approx(inverse, rel=1e-8)
    assert (1 / hessian.obs_cost).numpy() == pytest.approx(np.diag(inverse), rel=1e-8)
    assert hessian.factor.numpy() == pytest.approx(np.linalg.cholesky(inverse).T, rel=1e-7, abs=1e-10)


# What changes nothing, and what has to change something


@pytest.mark.parametrize("text", COMPARED)
@pytest.mark.parametrize("name", METHODS)
def test_a_weight_that_holds_the_pattern_comes_back_as_it_is(name, text):
    (weight, bias), pattern = layer(), parse(text)
    held = pattern.project(weight)
    found = METHODS[name](held, bias, seen(tokens()), pattern)
    assert torch.equal(found.weight, held) and found.bias is None and not found.note


@pytest.mark.parametrize("name", [name for name in METHODS if "alps" not in name])
def test_zeros_that_are_there_are_used_first(name):
    """From unstructured to 2:4: a group of two zeros keeps the others, whatever the inputs say of it."""
    weight, bias = layer()
    zeros = torch.arange(IN) % 8 < 2
    weight = weight.masked_fill(zeros, 0)
    found = METHODS[name](weight, bias, seen(tokens()), parse("2:4"))
    if "sparsegpt" in name:  # which moves what is right of the group that it is at
        assert found.mask[:, :4].int().tolist() == [[0, 0, 1, 1]] * OUT
    else:
        assert not found.mask[:, zeros].any()


def test_a_constant_input_goes_first_where_the_bias_takes_it_over():
    x, (weight, bias) = tokens(), layer(torch.float64)
    constant = torch.arange(IN) % 4 == 3
    weight, x = torch.where(constant, 30, weight), torch.where(constant, 2.0, x)
    found = SparseGPT(bias="joint")(weight, bias, seen(x), parse("3:4"))
    assert not found.mask[:, constant].any() and lost(weight, bias, found, x) < 1e-20
    assert SparseGPT()(weight, bias, seen(x), parse("3:4")).mask[:, constant].any()


@pytest.mark.parametrize("scale", [1e-3, 2.0, 1e5])
@pytest.mark.parametrize("text", COMPARED)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "adaprune-adam"])
def test_the_scale_of_the_inputs_changes_nothing(name, text, scale):
    (weight, bias), pattern = layer(torch.float64), parse(text)
    one = METHODS[name](weight, bias, seen(tokens()), pattern)
    other = METHODS[name](weight, bias, seen(scale * tokens()), pattern)
    assert torch.equal(one.mask, other.mask)
    assert torch.allclose(one.weight, other.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "adaprune-adam"])
def test_rows_do_not_know_of_each_other(name):
    (weight, bias), inputs = layer(torch.float64), seen(tokens())
    turned = METHODS[name](weight.flip(0), bias.flip(0), inputs, parse("2:4"))
    found = METHODS[name](weight, bias, inputs, parse("2:4"))
    assert torch.equal(turned.mask.flip(0), found.mask)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "magnitude"])
def test_without_an_input_the_weight_is_pruned_by_magnitude_and_the_note_says_so(name):
    weight, bias = layer()
    for inputs in (seen(tokens() * 0), Inputs(torch.zeros(IN, IN), torch.zeros(IN), 0, torch.zeros(0, IN))):
        found = METHODS[name](weight, bias, inputs, parse("2:4"))
        assert torch.equal(found.weight, parse("2:4").project(weight)) and "by magnitude" in found.note


def test_fitted_weights_that_half_precision_cannot_hold_stay_as_they_were():
    weight, bias = layer()
    weight = (weight / weight.abs().max() * 6e4).half()
    found = AdaPrune(damping=0.0)(weight, bias.half(), seen(tokens(12)), parse("1:4"))
    assert "overflow torch.float16" in found.note and torch.equal(found.weight, parse("1:4").project(weight))


OTHERS = {
    "scores": "wanda",
    "bias": "joint",
    "solver": "adam",
    "seed": 1,
    "batch": 20,
    "steps": 3,
    "tolerance": 0.1,
    "rho": 30.0,
}


@pytest.mark.parametrize(
    "name, setting", [(name, setting) for name in pruners.names() for setting in pruners.settings(name)]
)
def test_every_setting_changes_something(name, setting):
    weight, bias = layer()
    start = {"solver": "adam"} if setting in ("seed", "batch") or (name, setting) == ("adaprune", "steps") else {}
    value = OTHERS.get(setting, 0.3)
    one = pruners.make(name, **start)(weight, bias, seen(tokens()), parse("2:4"))
    other = pruners.make(name, **{**start, setting: value})(weight, bias, seen(tokens()), parse("2:4"))
    assert not torch.equal(one.weight, other.weight)


def test_a_sample_in_another_order_is_the_same_layer_and_the_same_seed_the_same_result():
    (weight, bias), inputs = layer(), seen(tokens())
    one, other = (METHODS["adaprune-adam"](weight, bias, inputs, parse("2:4")) for _ in range(2))
    assert same([one.weight, one.bias], [other.weight, other.bias])


# The catalogue, and what is said of a wrong word


@pytest.mark.parametrize("name", pruners.names())
def test_a_method_has_a_data_sheet_and_reads_as_it_prints(name):
    sheet = inspect.getdoc(pruners.METHODS[name])
    assert "Reference: " in sheet and "https://" in sheet and "Relations: " in sheet
    assert pruners.describe(name)[0].endswith(".")
    method = pruners.make(name)
    assert eval(repr(method), vars(pruners)) == method


def test_the_names_are_those_that_a_user_types():
    assert pruners.names() == ["magnitude", "wanda", "sparsegpt", "adaprune", "alps"]


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("sparse", {}, "There is no method 'sparse'.*sparsegpt"),
        ("wanda", {"damping": 1}, "has no settings; got 'damping'"),
        ("sparsegpt", {"damp": 1}, "has the settings damping, bias; got 'damp'"),
        ("sparsegpt", {"damping": -1}, "damping of sparsegpt must be a number of at least 0; got -1"),
        ("sparsegpt", {"bias": "yes"}, "bias of sparsegpt must be one of 'after', 'joint', 'keep'"),
        ("adaprune", {"scores": "l1"}, "scores of adaprune must be one of 'magnitude', 'wanda', 'sparsegpt'"),
        ("adaprune", {"solver": "sgd"}, "solver of adaprune must be one of 'gram', 'adam'"),
        ("adaprune", {"steps": 5}, 'steps=5 is for solver="adam"'),
        ("adaprune", {"solver": "adam", "damping": 0.2}, 'damping=0.2 is for solver="gram"'),
        ("adaprune", {"solver": "adam", "batch": 0}, "batch of adaprune must be a whole number of at least 1; got 0"),
        ("alps", {"steps": 1.5}, "steps of alps must be a whole number of at least 1; got 1.5"),
        ("alps", {"rho": 0}, "rho of alps must be above 0"),
        ("alps", {"rho": float("nan")}, "rho of alps must be a number"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(name, settings, words):
    with pytest.raises(ValueError, match=words):
        pruners.make(name, **settings)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda inputs: None, "needs statistics of the layer.s inputs; got none"),
        (lambda inputs: replace(inputs, gram=torch.eye(4)), r"needs a Gram matrix of shape \(40, 40\).*got \(4, 4\)"),
        (lambda inputs: replace(inputs, gram=inputs.gram * float("nan")), "Gram matrix holds 1600 NaN or infinities"),
        (lambda inputs: replace(inputs, mean=inputs.mean / 0), "mean holds 40 NaN or infinities"),
    ],
)
def test_inputs_that_no_number_can_be_made_of_are_refused(change, words):
    for name in METHODS.keys() - {"magnitude"}:
        with pytest.raises(ValueError, match=words):
            METHODS[name](*layer(), change(seen(tokens())), parse("2:4"))


def test_a_sample_is_asked_for_where_it_is_needed():
    with pytest.raises(ValueError, match="Inputs with a sample"):
        METHODS["adaprune-adam"](*layer(), replace(seen(tokens()), sample=None), parse("2:4"))
    assert [name for name, method in METHODS.items() if method.needs_sample] == ["adaprune-adam"]


@pytest.mark.parametrize("name", METHODS)
def test_a_weight_that_cannot_hold_the_pattern_or_is_no_number_is_refused(name):
    weight, bias = layer()
    with pytest.raises(ValueError, match="needs a multiple of 16"):
        METHODS[name](weight, bias, seen(tokens()), parse("8:16"))
    with pytest.raises(ValueError, match="NaN"):
        METHODS[name](weight * float("nan"), bias, seen(tokens()), parse("2:4"))
