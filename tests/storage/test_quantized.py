"""Quantized models: `verify` counts the zeros of the numbers that their weights stand for, or says that it cannot."""

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, BitsAndBytesConfig, TorchAoConfig

from nxm_hf import prune, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.storage.quantized import as_numbers, quantization_of
from tests.support.models import make_bert, make_model

NAME = "bert.encoder.layer.1.intermediate.dense"
pytestmark = pytest.mark.filterwarnings("ignore")  # of bitsandbytes and torchao, about themselves


class Scaled(torch.Tensor):
    """Integers times a scale, whose entries nothing but `dequantize` can count."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.count_nonzero:
            raise NotImplementedError("count_nonzero is not implemented")
        return super().__torch_function__(function, types, args, kwargs or {})

    def dequantize(self):
        return self.as_subclass(torch.Tensor) * 0.5


class Opaque(Scaled):
    """A form that cannot be dequantized."""

    dequantize = torch.Tensor.dequantize


class Hidden(nn.Module):
    """What GPTQ puts in place of a Linear: no weight."""

    def __init__(self):
        super().__init__()
        self.qweight = torch.ones(4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    model = make_bert()
    prune(model, pattern="2:4", method="magnitude")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder):
    return BertForSequenceClassification.from_pretrained(folder)


def _config(form):
    """Return the config of a quantization; skip where its package is missing."""
    pytest.importorskip({"int8": "bitsandbytes", "nf4": "bitsandbytes", "fp4": "bitsandbytes"}.get(form, "torchao"))
    if form in ("nf4", "fp4"):
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=form)
    if form == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao import quantization

    return TorchAoConfig(getattr(quantization, form)())


FORMS = ("int8", "nf4", "fp4", "Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")


def _with_weight(model, make):
    """Replace the weight of one layer by what `make` returns for it."""
    module = model.get_submodule(NAME)
    weight = module.weight.detach()
    del module.weight
    module.register_parameter("weight", nn.Parameter(make(weight), requires_grad=False))
    return model


@pytest.mark.parametrize("form", FORMS)
def test_a_model_quantized_after_it_became_sparse_is_ok_in_memory_and_in_a_directory(form, folder, tmp_path):
    model = BertForSequenceClassification.from_pretrained(folder, quantization_config=_config(form))
    model.save_pretrained(tmp_path)
    for report in (verify(model), verify(tmp_path), verify(model, "2:4")):
        assert report.ok and len(report.layers) == 12 and report.absent == ()
        assert 0.45 < report.density <= 0.5  # small weights round to zero
        assert {layer.shape for layer in report.layers} == {(32, 32), (64, 32), (32, 64)}


@pytest.mark.parametrize("form", FORMS)
def test_a_dense_model_that_is_quantized_breaks_the_pattern(form, tmp_path):
    make_bert().save_pretrained(tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path, quantization_config=_config(form))
    report = verify(model, "2:4")
    assert len(report.problems) == 12 and report.density > 0.6


def test_a_weight_that_can_be_dequantized_is_counted_by_its_numbers(model):
    assert verify(_with_weight(model, lambda weight: (weight * 1000).round().as_subclass(Scaled))).ok
    report = verify(_with_weight(model, lambda weight: torch.ones(64, 32).as_subclass(Scaled)))
    assert report.problems == [f"{NAME} breaks 2:4 in 512 places."]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.int8], ids=str)
def test_numbers_that_need_no_dequantization_are_counted_as_they_are(dtype, model):
    """Of float8 as floats, which have the same zeros."""
    layer = next(layer for layer in find_layers(model) if layer.name == NAME)
    weight = (layer.weight.detach() * 100).round().to(dtype)
    numbers = as_numbers(layer, weight)
    assert torch.equal(numbers.double(), weight.double()) and (numbers is weight) == ("float8" not in str(dtype))
    assert verify(_with_weight(model, lambda weight: weight.to(dtype))).problems == []


def test_complex_numbers_are_refused_because_no_layer_computes_with_them(model):
    with pytest.raises(ValueError, match=rf"weight of {NAME} is a Parameter, .*\(torch.complex64 has no order"):
        verify(_with_weight(model, lambda weight: weight.to(torch.complex64)))


def test_a_weight_in_one_row_is_refused_by_its_shape(model):
    says = rf"weight of {NAME} is a Parameter, .*\(a tensor of shape \(2048,\) for a matrix of \(64, 32\)\)\. Verify"
    with pytest.raises(ValueError, match=says):
        verify(_with_weight(model, torch.flatten))
    layer = next(layer for layer in find_layers(make_model("gpt2")) if layer.shape[0] != layer.shape[1])
    assert as_numbers(layer, layer.weight) is layer.weight, "a Conv1D names no sides"


@pytest.mark.parametrize(
    "form, make",
    {
        "Opaque": lambda weight: weight.as_subclass(Opaque),
        "Parameter": lambda weight: torch.ones(1024, 1, dtype=torch.uint8),
    }.items(),
)
def test_a_weight_whose_zeros_cannot_be_counted_is_an_error_that_names_it(form, make, model):
    with pytest.raises(ValueError, match=rf"weight of {NAME} is a {form}, whose zeros cannot be counted") as error:
        verify(_with_weight(model, make))
    assert str(error.value).endswith("Verify the model before it is quantized.")


def test_a_model_whose_layers_are_offloaded_is_refused_by_name(model):
    model.get_submodule(NAME).to("meta")
    with pytest.raises(ValueError, match=rf"^The weight of {NAME} is on the meta device, .* or verify its directory\."):
        verify(model)
    with pytest.raises(ValueError, match=rf"^{NAME} is on the meta device, .* without device_map=\."):
        prune(model, "2:4")


def test_a_quantization_that_hides_the_weights_is_an_error_that_names_it(model):
    module, name = NAME.rsplit(".", 1)
    setattr(model.get_submodule(module), name, Hidden())
    assert verify(model).problems == [f"{NAME} is recorded as sparse, and the model has no such layer."]
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match=rf"zeros of {NAME} cannot be counted in a model quantized by gptq\. Verify"):
        verify(model)
    del model.config.nxm_config["layers"][NAME]
    model.config.nxm_config["layers"]["no.such"] = "2:4"
    assert verify(model).absent == ("no.such",)


def test_the_method_of_a_quantization_is_read_from_both_forms_of_its_config():
    model = make_bert()
    assert quantization_of(model.config) is None and quantization_of(None) is None
    model.config.quantization_config = {"quant_method": "awq"}
    assert quantization_of(model.config) == "awq"
    model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    assert quantization_of(model.config) == "bitsandbytes"
