"""Analysis: masks, their number, the learning correlation and training FLOPs, against values worked out elsewhere."""

import math
from itertools import product

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import nxm_hf
from nxm_hf import NxMConfig, analysis, attach, recipes
from nxm_hf.analysis.density_schedule import density_schedule
from nxm_hf.analysis.diversity import transposable_tiles
from nxm_hf.cli.main import main
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import NEVER, Decay, Every, Frames
from nxm_hf.patterns import NM, Transposable, parse
from tests.support.models import make_bert
from tests.support.toy_training import Toy, adamw, loss_at, short

# -- similarity and flip rate --------------------------------------------------------------------------------------


def test_similarity_and_flip_rate_of_a_worked_pair():
    before, mask = (torch.tensor([int(bit) for bit in bits]) for bits in ("11001010", "10101010"))
    assert nxm_hf.analysis.mask_similarity(mask, before) == 0.75
    assert nxm_hf.analysis.flip_rate(mask, before) == 0.25


def test_similarity_is_the_share_of_what_was_kept_before():
    few, more = torch.tensor([True, False, False, False]), torch.tensor([True, True, True, True])
    assert analysis.mask_similarity(more, few) == 1.0 and analysis.mask_similarity(few, more) == 0.25
    assert analysis.flip_rate(more, few) == analysis.flip_rate(few, more) == 0.75


@pytest.mark.parametrize("text", ["2:4", "1:4", "5:8", "2:4-transposable"])
def test_for_a_fixed_pattern_the_two_are_one_number(text):
    pattern = parse(text)
    before, mask = (pattern.mask(torch.rand(64, 64)) for _ in range(2))
    similarity = analysis.mask_similarity(mask, before)
    assert analysis.flip_rate(mask, before) == pytest.approx(2 * (1 - similarity) * pattern.density)
    assert similarity == pytest.approx(pattern.density, abs=0.05)  # unrelated masks
    assert analysis.mask_similarity(mask, mask) == 1 and analysis.flip_rate(mask, mask) == 0


def test_a_mask_of_nothing_lost_nothing_and_other_shapes_are_refused():
    nothing = torch.zeros(4, dtype=torch.bool)
    assert analysis.mask_similarity(nothing, nothing) == 1 and analysis.flip_rate(nothing, nothing) == 0
    for measure in (analysis.mask_similarity, analysis.flip_rate):
        with pytest.raises(ValueError, match=r"got \(4,\) and \(2, 2\)"):
            measure(nothing, nothing.view(2, 2))


# -- mask diversity ------------------------------------------------------------------------------------------------

WORKED = {  # of 8x8 weights: pattern, exact, count, log10 of it per weight
    "unstructured:0.5": (True, 1.83e18, 0.285),
    "4:8": (True, 5.77e14, 0.231),
    "2:4": (True, 2.82e12, 0.195),
    "4:8-transposable": (True, 1.17e11, 0.173),
    "2:4-transposable": (True, 90.0**4, 0.122),
}


@pytest.mark.parametrize("text", WORKED)
def test_diversity_of_worked_examples(text):
    exact, count, each = WORKED[text]
    found = analysis.mask_diversity(text, 64, exact)
    assert 10**found == pytest.approx(count, rel=3e-3) and found / 64 == pytest.approx(each, abs=5e-4)
    assert analysis.mask_diversity(text, 64 * 7) == pytest.approx(7 * found, rel=0.05)


@pytest.mark.parametrize("text, count", [("4:8-transposable", 1.756e13), ("2:4-transposable", 4.30e8)])
def test_diversity_by_the_formula_of_the_paper(text, count):
    assert 10 ** analysis.mask_diversity(text, 64, exact=False) == pytest.approx(count, rel=3e-3)
    assert analysis.mask_diversity(text, 64, exact=False) > analysis.mask_diversity(text, 64)


def test_the_claim_of_the_paper_holds_by_its_formula_and_not_exactly():
    structured = analysis.mask_diversity("2:4", 64)
    assert analysis.mask_diversity("4:8-transposable", 64, exact=False) > structured
    assert analysis.mask_diversity("4:8-transposable", 64) < structured


def test_the_formula_is_exact_for_what_is_not_transposable():
    for text in ("2:4", "unstructured:0.3", "block:4x4:0.5", "block:4:0.25", "dense"):
        assert analysis.mask_diversity(text, 64, exact=False) == analysis.mask_diversity(text, 64)


def _holds(text: str, mask: torch.Tensor) -> bool:
    return int(mask.count_nonzero()) == parse(text).kept(mask.shape) and parse(text).violations(mask) == 0


@pytest.mark.parametrize(
    "text, shape",
    [
        *(("2:4", (1, 12)), ("1:3", (2, 6)), ("unstructured:0.3", (1, 10)), ("block:2:0.5", (1, 12))),
        *(("block:2x2:0.5", (2, 6)), ("1:4-transposable", (4, 4))),
    ],
)
def test_diversity_counts_the_masks_that_there_are(text, shape):
    """The reference writes them all down."""
    numel = math.prod(shape)
    masks = (torch.tensor(bits).view(shape) for bits in product((0, 1), repeat=numel))
    count = sum(_holds(text, mask) for mask in masks)
    assert 10 ** analysis.mask_diversity(text, numel) == pytest.approx(count, rel=1e-9)


@pytest.mark.parametrize(
    "n, m, count",
    [
        *((2, 4, 90), (1, 4, 24), (3, 4, 24), (1, 8, 40320)),
        *((4, 8, 116963796250), (2, 8, 187530840), (6, 8, 187530840)),
        *((2, 5, 2040), (3, 6, 297200)),  # OEIS A001499 and A001501
    ],
)
def test_transposable_tiles_are_counted_exactly(n, m, count):
    assert transposable_tiles(n, m) == count


def test_diversity_knows_patterns_as_objects_and_does_not_make_what_cannot_be_trained():
    assert analysis.mask_diversity(Transposable(2, 4), 16) == pytest.approx(math.log10(90))
    assert analysis.mask_diversity("dense", 12) == 0
    assert math.isfinite(analysis.mask_diversity("unstructured:0.5", 10**9))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("2:4", 7), "7 weights do not split into groups of 4"),
        (("2:4-transposable", 40), "do not split into groups of 16"),
        (("2:4", -4), "got -4"),
        (("2:4", 4.0), "got 4.0"),
        (("half", 4), "There is no pattern 'half'"),
        (("8:4-transposable", 64), "Write '4:8'"),
        (("16:32-transposable", 1024), "exact=False"),
    ],
)
def test_diversity_refuses_what_it_cannot_count(arguments, message):
    with pytest.raises(ValueError, match=message):
        analysis.mask_diversity(*arguments)


# -- the learning correlation --------------------------------------------------------------------------------------

SERIES = torch.tensor([0.0, 1, 2, 3, 2, 1, 0, -1, -2, -3, -2, -1])
RHO = [1, 0.85446, 0.560779, 0.237171, -0.130744, -0.636285, -1, -0.419314, 0.632456]


def naive(series: list[float], lags=None) -> float:
    """The definition, word by word, of one series."""
    count, tau, rho = len(series), 0, 1.0
    x = torch.tensor(series, dtype=torch.float64)
    if (x == x[0]).all():
        return math.nan
    for lag in lags or range(1, count):
        if count - lag < 8:
            break
        here = torch.corrcoef(torch.stack([x[: count - lag], x[lag:]]))[0, 1].item()
        if here <= 0:
            return (tau + (lag - tau) * rho / (rho - here)) / (count - 1)
        tau, rho = lag, here
    return 1.0


def stream(snapshots: torch.Tensor, lags) -> analysis.LearningCorrelation:
    found = analysis.LearningCorrelation(lags)
    for snapshot in snapshots:
        found.add(snapshot)
    return found


def some_series(count: int = 60) -> torch.Tensor:
    """White noise, walks, drifts, a constant far from zero and a weight that is pruned half-way: [count, 3, 4]."""
    noise = torch.randn(count, 12)
    series = noise.clone()
    series[:, 3:6] = noise[:, 3:6].cumsum(0)
    series[:, 6:9] += torch.linspace(0, 10, count)[:, None]
    series[:, 9] = 0.1
    series[count // 2 :, 10] = 0
    return (series * 1e-3 + 5).view(count, 3, 4)


def test_the_worked_vector():
    found = analysis.learning_correlation(SERIES)
    assert found.delta.shape == () and found.delta.item() == pytest.approx(0.331330, abs=1e-6)
    assert found.delta.item() * 11 == pytest.approx(3.644635, abs=1e-6)
    assert analysis.autocorrelation(SERIES, range(9)).tolist() == pytest.approx(RHO, abs=1e-6)
    assert stream(SERIES, range(1, 5)).result().delta.item() == pytest.approx(0.331330, abs=1e-6)


def test_all_lags_at_once_agree_with_the_correlation_of_torch():
    series = some_series().view(60, -1)
    ours = analysis.autocorrelation(series, range(1, 53))
    for column in (0, 4, 7):
        x = series[:, column].double()
        theirs = [torch.corrcoef(torch.stack([x[:-lag], x[lag:]]))[0, 1].item() for lag in range(1, 53)]
        assert ours[:, column].tolist() == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("lags", [None, [1, 2, 4, 8, 16, 32], [50, 3, 7]], ids=["all", "doubling", "some"])
def test_offline_and_streaming_equal_the_definition(lags):
    series = some_series()
    offline = analysis.learning_correlation(series, lags=lags)
    streamed = stream(series, lags or range(1, 60)).result()
    for place in product(range(3), range(4)):
        if place == (2, 2):
            continue  # the pruned weight; it has a test of its own
        right = naive(series[(slice(None), *place)].tolist(), sorted(lags) if lags else None)
        assert offline.delta[place].item() == pytest.approx(right, abs=1e-9, nan_ok=True)
    assert torch.allclose(offline.delta, streamed.delta, rtol=0, atol=1e-9, equal_nan=True)


def test_a_stream_can_be_read_at_any_time():
    series, lags = some_series(), [1, 3, 9, 27]
    for count in (9, 12, 20, 37):
        now = stream(series[:count], lags).result().delta
        offline = analysis.learning_correlation(series[:count], lags=lags).delta
        assert torch.allclose(now, offline, rtol=0, atol=1e-9, equal_nan=True)


def test_more_series_than_a_chunk_and_a_list_of_snapshots_are_the_same():
    walk = torch.randn(20, 2100).cumsum(0)
    whole = analysis.learning_correlation(walk).delta
    parts = [analysis.learning_correlation(part).delta for part in walk.split(300, dim=1)]
    assert torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-12)
    assert torch.equal(analysis.learning_correlation(list(walk)).delta, whole)


def test_constants_and_numbers_that_are_none_are_left_out_and_counted():
    series = torch.randn(30, 5)
    series[:, 1], series[7, 2] = 0.1, torch.nan
    for found in (analysis.learning_correlation(series), stream(series, range(1, 30)).result()):
        assert found.delta.isnan().tolist() == [False, True, True, False, False] and found.undefined == 2
        assert 0 < found.median < 1


def test_a_weight_that_stays_where_it_was_pruned_is_no_error():
    series = some_series()[:, 2, 2]
    for found in (analysis.learning_correlation(series), stream(series, range(1, 60)).result()):
        assert 0 < found.delta <= 1


def test_what_never_crosses_is_censored_and_its_share_reported():
    rise = torch.arange(40.0)
    found = analysis.learning_correlation(torch.stack([rise, rise * 2 + 1, torch.randn(40), torch.ones(40)], 1))
    assert found.delta[:2].tolist() == [1, 1] and found.delta[2] < 1
    assert found.censored == pytest.approx(2 / 3)


def test_a_mask_tells_kept_from_pruned():
    series = torch.cat([torch.arange(40.0)[:, None].expand(40, 3), torch.randn(40, 50)], 1)
    mask = torch.arange(53) < 3
    found = analysis.learning_correlation(series, mask)
    assert found.kept == 1 and found.pruned < 0.1
    assert stream(series, range(1, 40)).result(mask).kept == 1
    with pytest.raises(ValueError, match="Give mask="):
        _ = analysis.learning_correlation(series).kept
    with pytest.raises(ValueError, match=r"the shape \(2,\)"):
        analysis.learning_correlation(series, mask[:2])


def test_the_null_models_are_those_of_the_specification():
    null = analysis.random_walk_null(400)
    assert null.median == pytest.approx(0.285, abs=0.02)
    assert null.quantile(0.25) == pytest.approx(0.18, abs=0.02) and null.quantile(0.75) == pytest.approx(0.56, abs=0.03)
    assert analysis.learning_correlation(torch.randn(400, 2000)).median == pytest.approx(0.0025, abs=1e-4)
    approach = torch.exp(-torch.arange(400.0) / 400)[:, None] + 1e-3 * torch.randn(400, 200)
    assert analysis.learning_correlation(approach).median > 0.9  # one e-folding: it never turns round


def test_the_null_is_the_same_for_the_same_seed_and_touches_no_chance_of_others():
    before = torch.get_rng_state()
    one, same, other = (analysis.random_walk_null(50, 20, seed).delta for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_remembers_as_much_after_many_snapshots_as_after_few():
    def entries(found):
        return sum(value.numel() for value in vars(found).values() if isinstance(value, torch.Tensor))

    few, many = (stream(torch.randn(count, 6), [1, 5, 10]) for count in (20, 200))
    assert entries(few) == entries(many)


def test_lags_and_snapshots_that_do_not_fit_are_refused():
    for lags in ([], [0, 1], [1.5]):
        with pytest.raises(ValueError, match="must be whole numbers of at least 1"):
            analysis.LearningCorrelation(lags)
        with pytest.raises(ValueError, match="must be whole numbers of at least 1"):
            analysis.learning_correlation(torch.randn(30, 2), lags=lags)
    for few in (torch.randn(8, 2), torch.randn(0, 2)):
        with pytest.raises(ValueError, match="needs at least 9 snapshots"):
            analysis.learning_correlation(few)
    with pytest.raises(ValueError, match="needs at least 28 snapshots"):
        stream(torch.randn(25, 2), [20]).result()
    with pytest.raises(ValueError, match="the first had"):
        stream([torch.zeros(3), torch.zeros(4)], [1])


# -- training FLOPs ------------------------------------------------------------------------------------------------

PHASES = {"warmup": 0.1, "settle": 0.1}
ACCOUNTS = [  # recipe, pattern, phases, forward alone, forward and dX
    ("asp", "2:4", {}, 0.8333, 0.6667),
    ("structure-decay", "1:16", PHASES, 0.8021, 0.6042),
    ("mask-decay", "1:16", PHASES, 0.9688, 0.9375),
    ("asp", "1:16", {"warmup": 0.1}, 0.7188, 0.4375),
    ("ste", "2:4", {}, 0.8333, 0.6667),
    ("admm", "2:4", {}, 0.9167, 0.8333),  # left to itself it settles for half of the steps
    ("admm", "2:4", {"settle": 0.3}, 0.95, 0.9),
    ("dense", "2:4", {}, 1.0, 1.0),
]


@pytest.mark.parametrize("recipe, pattern, phases, forward, both", ACCOUNTS)
def test_accounts_of_the_specification(recipe, pattern, phases, forward, both):
    model, config = make_bert(), NxMConfig(recipe, pattern, **phases)
    found = [analysis.training_flops(model, config, 1000, sparse_dx=dx).ratio for dx in (None, False, True)]
    assert found == pytest.approx([forward, forward, both], abs=5e-5)


def test_transposable_patterns_and_two_dimensional_blocks_save_in_both_directions():
    for pattern, dx in {"2:4-transposable": 0.5, "block:4x4:0.5": 0.5, "block:4:0.5": 1, "unstructured:0.5": 1}.items():
        (first, *_) = analysis.training_flops(make_bert(), NxMConfig("asp", pattern), 10).layers
        assert (first.forward, first.dx, first.dw) == (0.5, dx, 1), pattern


def test_the_gradient_of_weights_counts_as_sparse_only_where_pruned_ones_get_none():
    def dw(recipe, **words):
        account = analysis.training_flops(make_bert(), NxMConfig(recipe, **words), 100, sparse_dw=True)
        return account.layers[0].dw

    assert dw("asp") == dw("set", settings={"every": 10}) == 0.5 and dw("ste") == 1
    assert dw("fix") == 0.75 and dw("admm", settle=0.2) == 0.9
    assert dw("rigl", settings={"every": 10}) == pytest.approx((91 * 0.5 + 9) / 100, abs=0.006)


def planned(config: NxMConfig, total: int) -> list[float]:
    """What the account says that each forward pass multiplies by."""
    parts = density_schedule(config.method(config.patterns()["default"]), total)
    return [part.pattern.density for part in parts for _ in range(part.steps)]


def seen(config: NxMConfig, total: int) -> list[float]:
    """What each forward pass of a training multiplied by."""
    model, densities = Toy(), []
    optimizer = adamw(model)
    attach(model, optimizer, config, total_steps=total)
    for step in range(total):
        weight = model.linears[0].weight
        densities.append(int(weight.count_nonzero()) / weight.numel())
        optimizer.zero_grad()
        loss_at(step, model).backward()
        optimizer.step()
    return densities


@pytest.mark.parametrize("window", [{}, {"warmup": 0.25, "settle": 0.25}], ids=["whole", "warmup+settle"])
@pytest.mark.parametrize("recipe", [name for name in recipes.names() if name != "dense"])
def test_the_account_of_a_recipe_is_what_its_training_does(recipe, window):
    config = short(recipe, **window)
    plan, found = planned(config, 24), seen(config, 24)
    assert len(plan) == 24 and all(one <= most for one, most in zip(found, plan, strict=True))
    different = sum(one != most for one, most in zip(found, plan, strict=True))
    # What has just grown, or was pruned until now, is still zero in the first forward pass.
    assert different <= (8 if recipe in ("set", "rigl", "acdc") else 0)


@pytest.mark.parametrize("refresh", [NEVER, Every(5)])
def test_the_account_follows_schedules_of_ones_own(refresh):
    """The mask is solved anew when it freezes, whether a refresh is due or not."""
    ladder = Frames((NM(3, 4), NM(2, 4), NM(1, 4)))
    method = Masked(ladder, refresh, gain=Decay("linear", 0.2), freeze=lambda clock: clock.step >= 14)
    config = NxMConfig(method, "1:4")
    assert planned(config, 24) == seen(config, 24)
    assert {0.5, 1.0} <= set(planned(config, 24))


def test_a_method_that_we_know_nothing_of_counts_as_dense():
    class Mine:
        """Four verbs that do nothing."""

        def init(self, weight, clock):
            return {}

        def before_step(self, weight, state, clock):
            pass

        after_step = finish = before_step

    config = NxMConfig(Mine(), "2:4", settle=0.5)
    assert planned(config, 8) == [1.0] * 4 + [0.5] * 4


def test_layers_of_several_patterns_have_accounts_of_their_own():
    config = NxMConfig("asp", {"ffn": "1:4", "query": "2:4"})
    layers = {layer.role: layer for layer in analysis.training_flops(make_bert(), config, 10).layers}
    assert {role: layer.forward for role, layer in layers.items()} == {"query": 0.5, "ffn_in": 0.25, "ffn_out": 0.25}
    assert (layers["query"].pattern, layers["ffn_in"].pattern) == ("2:4", "1:4")


def test_the_work_of_bert_is_what_its_shapes_say():
    """Width 32, feed-forward 64, 2 layers, 2 labels, 16 tokens."""
    width, inner, tokens, steps = 32, 64, 16, 10
    found = analysis.training_flops(make_bert(), "asp", steps, tokens=tokens)
    encoder = 2 * 2 * tokens * (4 * width * width + 2 * width * inner)
    head, attention = 2 * (width * width + 2 * width), 2 * 2 * (2 * tokens * tokens * width)
    assert (found.pruned, found.linear, found.other) == tuple(3 * steps * x for x in (encoder, head, attention))
    assert found.sparse == pytest.approx(found.pruned * 5 / 6)
    assert found.other_share == attention / (encoder + head + attention)
    assert found.overall == pytest.approx((encoder * 5 / 6 + head + attention) / (encoder + head + attention))


def test_a_larger_part_of_long_texts_is_attention():
    short, long = (analysis.training_flops(make_bert(), "asp", 1, tokens=tokens).other_share for tokens in (4, 32))
    assert short < long
    more = analysis.training_flops(make_bert(), "asp", 1, tokens=500).other_share  # it takes no more than 32
    assert more == long


def test_inputs_of_ones_own_weigh_the_layers():
    shape = dict(d_model=32, num_layers=2, d_ff=64, num_heads=2, d_kv=16, vocab_size=50)
    model = T5ForConditionalGeneration(T5Config(**shape))
    ids = torch.zeros(1, 8, dtype=torch.long)
    even = analysis.training_flops(model, "asp", 1, tokens=8)
    lopsided = analysis.training_flops(
        model, "asp", 1, inputs={"input_ids": ids.repeat(1, 4), "decoder_input_ids": ids}
    )
    cost = [{layer.name: layer.dense for layer in found.layers} for found in (even, lopsided)]
    for name in cost[0]:
        doubled = name.startswith("encoder") or "EncDecAttention.k" in name or "EncDecAttention.v" in name
        assert cost[1][name] == cost[0][name] * (4 if doubled else 1), name


def test_a_model_that_does_not_run_on_zeros_is_counted_by_its_matrices():
    found = analysis.training_flops(Toy(), "asp", 5)
    assert found.other is None and found.other_share is None and "Give inputs=" in str(found)
    assert found.pruned == 3 * 5 * 2 * 4 * 128 and found.linear == 3 * 5 * 2 * 16
    with pytest.raises(TypeError):
        analysis.training_flops(Toy(), "asp", 5, inputs={"wrong": torch.zeros(1, 8)})


def test_counting_changes_nothing():
    model = make_bert(attention_probs_dropout_prob=0.5)
    model.bert.pooler.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    analysis.training_flops(model, "asp", 5)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_account_says_its_conventions():
    texts = {
        str(analysis.training_flops(make_bert(), "asp", 5, sparse_dx=dx, sparse_dw=dw))
        for dx in (None, True, False)
        for dw in (True, False)
    }
    assert len(texts) == 6
    for text in texts:
        assert "three equal products" in text and "element-wise work is not counted" in text


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_a_training_has_at_least_one_step_and_a_text_one_token(steps):
    with pytest.raises(ValueError, match="total_steps must be a whole number"):
        analysis.training_flops(make_bert(), "asp", steps)
    with pytest.raises(ValueError, match="tokens must be a whole number"):
        analysis.training_flops(make_bert(), "asp", 5, tokens=steps)


def test_nxm_flops_prints_the_account(tmp_path, capsys):
    make_bert().save_pretrained(tmp_path)
    words = ["--recipe", "structure-decay", "--pattern", "1:16", "--warmup", "0.1", "--settle=0.1", "--steps", "500"]
    settings = '{"refresh": 2, "frames": ["4:16", "1:16"]}'
    assert main(["flops", "--model", str(tmp_path), *words, "--settings", settings, "--tokens", "16"]) == 0
    config = NxMConfig("structure-decay", "1:16", settings, warmup=0.1, settle=0.1)
    right = analysis.training_flops(make_bert(), config, 500, tokens=16)
    assert capsys.readouterr().out == f"{right}\n" and right.ratio < 0.8


@pytest.mark.parametrize(
    "words, useful",
    [
        ([], "Give --model DIR to plan a training, or RUN_DIR"),
        (["a", "--model", "b"], "Give --model DIR to plan a training, or RUN_DIR"),
        (["a", "--steps", "5"], "a has its recipe and steps on record; RUN_DIR can be combined with --tokens only."),
        (["nowhere"], "nowhere does not exist"),
        (["--model", "nowhere"], "nowhere does not exist"),
        (["--model", ".", "--recipe", "stee"], "Write 'ste'"),
        (["--model", ".", "--settings", "{"], "is not JSON"),
        (["--model", ".", "--settle", "2"], "settle is a fraction"),
        (["--model", ".", "--steps", "many"], "invalid int value"),
    ],
)
def test_misuse_of_nxm_flops_is_one_line(words, useful, capsys):
    assert main(["flops", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and useful in shown.err
