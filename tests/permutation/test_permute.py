"""Permutation: the model computes what it did, masks keep more, and what is not free stays where it is."""

import pytest
import torch

import nxm_hf
from nxm_hf import NxMConfig, permute
from nxm_hf.patterns import NM, parse
from tests.support.models import assert_equal_weights, make_bert, make_model
from tests.support.permutation import FREE, answer, make, relative


@pytest.mark.parametrize("name", FREE)
def test_a_permuted_model_computes_what_it_did_and_its_masks_keep_more(name):
    model = make(*FREE[name])
    before, weights = answer(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    report = permute(model, "2:4")
    assert not report.skipped, report.skipped
    assert torch.equal(model.state_dict()[next(iter(weights))], next(iter(weights.values())))  # embeddings stay
    roles = {layer.role for layer in report.layers}
    assert {"ffn_out", "attention_output"} <= roles
    assert relative(answer(model), before) < 1e-5  # other sums in another order, so not bit for bit
    shares = []
    for layer in report.layers:
        own = nxm_hf.layers.find.find_layers(model, include=layer.name)[0]
        now, then = own.matrix(own.weight.detach()), own.matrix(weights[f"{layer.name}.weight"])
        for matrix, share in ((then, layer.before), (now, layer.after)):
            sizes = matrix.abs()
            assert float((sizes * NM(2, 4).mask(sizes)).sum() / sizes.sum()) == pytest.approx(share, rel=1e-5)
        assert torch.equal(now.sort(1).values, then.sort(1).values) and not torch.equal(now, then)
        assert layer.after > layer.before
        shares.append(
            (layer.before * float(then.abs().sum()), layer.after * float(then.abs().sum()), float(then.abs().sum()))
        )
    before, after, total = (sum(column) for column in zip(*shares, strict=True))
    assert report.before == pytest.approx(before / total, rel=1e-5)
    assert report.after == pytest.approx(after / total, rel=1e-5)
    assert f"{len(report.layers)} layers: {report.before:.4f}" in str(report)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama with shared values", "phi3, all of attention in one"])
def test_in_exact_arithmetic_the_answer_is_equal_to_the_last_digits(name):
    model = make(*FREE[name]).double()
    before = answer(model)
    assert permute(model, "2:4").after > 0
    assert relative(answer(model), before) < 1e-14


def test_channels_of_convolutions_of_width_one_stand_before_the_positions():
    model = make_model("squeezebert").eval()
    tokens = {"input_ids": torch.arange(10).view(2, 5)}
    with torch.no_grad():
        before = model(**tokens).last_hidden_state
        report = permute(model, "2:4")
        after = model(**tokens).last_hidden_state
    assert {layer.role for layer in report.layers} >= {"ffn_out"} and report.after > report.before
    assert relative(after, before) < 1e-5


def test_a_check_that_fails_leaves_the_model_as_it_was(monkeypatch):
    """The second run fails, as when the memory is full: the layers were permuted by then."""
    model, calls = make_bert(), []
    forward = model.forward

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", failing)
    with pytest.raises(MemoryError):
        permute(model, "2:4")
    assert len(calls) == 2
    assert_equal_weights(model, make_bert())


def test_weights_move_with_their_rows_and_biases_and_nothing_else_moves():
    """BERT by hand: which tensors change, and how they are the old ones in another order."""
    model = make(*FREE["bert"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permute(model, "2:4")
    changed = {
        name.split("layer.")[-1][2:] for name, now in model.state_dict().items() if not torch.equal(now, before[name])
    }
    assert changed == {
        *("attention.self.value.weight", "attention.self.value.bias", "attention.output.dense.weight"),
        *("intermediate.dense.weight", "intermediate.dense.bias", "output.dense.weight"),
    }
    for layer in ("bert.encoder.layer.0.", "bert.encoder.layer.1."):
        then, now = (
            {k.removeprefix(layer): v for k, v in s.items() if k.startswith(layer)}
            for s in (before, model.state_dict())
        )
        pairs = (("intermediate.dense", "output.dense", 64), ("attention.self.value", "attention.output.dense", 16))
        for first, second, section in pairs:
            old = torch.cat([then[f"{first}.weight"], then[f"{first}.bias"][:, None], then[f"{second}.weight"].t()], 1)
            new = torch.cat([now[f"{first}.weight"], now[f"{first}.bias"][:, None], now[f"{second}.weight"].t()], 1)
            order = [next(i for i, row in enumerate(old) if torch.equal(row, one)) for one in new]
            assert sorted(order) == list(range(len(old)))
            assert [i // section for i in order] == [i // section for i in range(len(old))]  # each in its own head


def test_permuting_is_the_same_everywhere_and_asks_no_global_generator():
    ones, others = (make(*FREE["llama"]) for _ in range(2))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    permute(ones.train(), "2:4")
    assert torch.equal(torch.get_rng_state(), state) and ones.training
    torch.manual_seed(2)
    permute(others, "2:4")
    assert all(torch.equal(a, b) for a, b in zip(ones.parameters(), others.parameters(), strict=True))
    twice = permute(others, "2:4", rounds=1)
    assert twice.after >= twice.before


def test_every_module_keeps_its_parameters_and_their_memory():
    model = make(*FREE["bert"])
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    permute(model)
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    assert not any(module._forward_hooks for module in model.modules())


# -- what is left alone ------------------------------------------------------------------------------------------------


def test_the_pattern_says_which_layers_and_which_groups():
    model = make(*FREE["bert"])
    report = permute(model, {"ffn": "4:8", "attention_output": "1:4"})
    assert {layer.role: layer.pattern for layer in report.layers} == {"ffn_out": "4:8", "attention_output": "1:4"}
    report = permute(model, NxMConfig("sr-ste", "2:4", include="ffn", exclude="encoder.layer.0"))
    assert [layer.name for layer in report.layers] == ["bert.encoder.layer.1.output.dense"] and not report.skipped
    report = permute(model, "8:16")  # a head is one group
    assert {why for why in report.skipped.values()} == {"all channels that could change places stand in one group"}
    report = permute(make_bert(hidden_size=24), {"attention": "2:8", "default": "2:4"})
    assert {why for why in report.skipped.values()} == {"12 channels do not split into groups of 8"}
    report = permute(model, {"ffn_in": "2:4-transposable", "ffn_out": "2:4", "default": "dense"})
    assert not report.layers and all(
        "is to hold 2:4-transposable, and only N:M" in why for why in report.skipped.values()
    )


@pytest.mark.parametrize("pattern", ["unstructured:0.5", "block:4:0.5", "2:4-transposable", parse("dense")])
def test_a_pattern_without_groups_is_an_error_that_says_what_to_write(pattern):
    with pytest.raises(ValueError, match=r'Write pattern="2:4"|Nothing is left to prune'):
        permute(make_bert(), pattern)


def test_a_sparse_model_is_an_error():
    model = make_bert()
    engine = nxm_hf.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), "asp", total_steps=1)
    engine.finish()
    with pytest.raises(ValueError, match="sparse already, and its masks would not be permuted"):
        permute(model)


def test_half_precision_is_permuted_as_well():
    model = make(*FREE["bert"]).bfloat16()
    before = answer(model)
    report = permute(model)
    assert len(report.layers) == 4 and relative(answer(model), before) < 0.05


# -- the search --------------------------------------------------------------------------------------------------------
