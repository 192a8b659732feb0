"""The bench times layers and the whole model, and says in words what packed weights are worth."""

import json

import pytest
import torch
from torch import nn

from nxm_hf.inference.bench import Measurement, bench
from nxm_hf.inference.timing import Timing
from nxm_hf.packing import PackedLinear
from tests.support.inference import sparse_bert
from tests.support.models import make_bert

pytest.importorskip("numba", reason="the kernels for CPUs need numba")


def measured(**medians):
    """Return a measurement with constant times, in seconds; underscores stand for spaces."""
    timings = {name.replace("_", " "): Timing((seconds,) * 3) for name, seconds in medians.items()}
    errors = {name: 1e-7 for name in timings if name != "dense"}
    return Measurement("whole model", 2, 8, timings, errors)


@pytest.fixture(scope="module")
def result():
    return bench(sparse_bert(), batch=[1, 2], length=[1, 8], compiled=False, seconds=0.0)


def test_every_kind_of_layer_and_the_model_are_timed_at_every_shape(result):
    subjects = {each.subject for each in result.layers}
    assert subjects == {"32x32 2:4, 8 layers", "64x32 2:4, 2 layers", "32x64 2:4, 2 layers"}
    assert [(each.batch, each.length) for each in result.model] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    assert {tuple(each.timings) for each in result.layers} == {("dense", "cpu")}
    assert {tuple(each.timings) for each in result.model} == {("dense", "packed")}
    assert all(0 <= error < 1e-5 for each in (*result.layers, *result.model) for error in each.errors.values())
    assert (result.dtype, result.device, result.threads) == ("float32", "cpu", 1)


def test_the_result_prints_and_fits_json(result):
    text = str(result)
    assert "32x64 2:4, 2 layers" in text and "whole model" in text and "MiB dense" in text
    loaded = json.loads(json.dumps(result.to_dict()))
    assert len(loaded["measurements"]) == len(result.layers) + len(result.model)
    first = loaded["measurements"][0]
    assert first["ways"]["cpu"]["speedup"] == pytest.approx(result.layers[0].speedup("cpu"))


def test_the_model_is_left_as_it_was():
    model = sparse_bert().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    bench(model, batch=[1], length=[4], compiled=False, seconds=0.0)
    assert model.training and all(weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_packed_model_is_compared_with_a_dense_one():
    model = sparse_bert()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layer." in name:
            model.set_submodule(name, PackedLinear.from_dense(module, "2:4"))
    result = bench(model, batch=[1], length=[4], compiled=False, seconds=0.0)
    assert len(result.layers) == 3 and result.model[0].errors["packed"] < 1e-5
    assert any(isinstance(module, PackedLinear) for module in model.modules())


def test_a_model_without_sparse_layers_or_a_length_that_it_cannot_read_is_an_error():
    with pytest.raises(
        ValueError, match="No layer of this BertForSequenceClassification can be packed: it holds no n:4"
    ):
        bench(make_bert().eval(), compiled=False, batch=[1], length=[4])
    with pytest.raises(ValueError, match=r"can be packed: [^;]*float64[^;]*$"):  # not that its head is dense
        bench(sparse_bert().double(), compiled=False, batch=[1], length=[4])
    with pytest.raises(ValueError, match="length=64 is more than the 32 tokens that this model reads"):
        bench(sparse_bert(), compiled=False, batch=[1], length=[64])


@pytest.mark.parametrize(
    ("medians", "verdict"),
    [
        (dict(dense=3.0, cpu=2.0), "cpu is faster: 1.50x"),
        (dict(dense=3.0, dense_compiled=1.0, cpu=2.0), "cpu is slower: 0.50x"),
        (dict(dense=1.0, packed=4.0, packed_compiled=1.01), "packed compiled is no faster: 0.99x"),
        (dict(dense=1.0), "nothing to pack"),
    ],
)
def test_the_verdict_compares_the_best_packed_way_with_the_best_dense_one(medians, verdict):
    assert measured(**medians).verdict == verdict


def test_speedups_are_of_medians_and_their_quartiles_of_rounds():
    timings = {"dense": Timing((2.0, 4.0, 6.0)), "cpu": Timing((1.0, 1.0, 2.0))}
    measurement = Measurement("a", 1, 1, timings, {"cpu": 0.0})
    assert measurement.speedup("cpu") == 4.0
    low, high = measurement.spread("cpu")
    assert low < 3.0 < high
