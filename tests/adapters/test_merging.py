"""Merging an adapter into its base: sparse, stamped, and honest about what was dropped."""

import copy
from types import SimpleNamespace

import pytest
import torch

import nxm_hf
from nxm_hf import merge_adapter, verify
from nxm_hf.adapters.merging import merge
from nxm_hf.storage.model_record import read_record
from tests.support.adapters import make_adapted, make_base
from tests.support.models import make_batches, make_bert
from tests.support.training import pruned_weights

pytestmark = pytest.mark.filterwarnings("default")  # those of another library are not ours
BATCHES = make_batches("bert", count=8)


def sums_of(model) -> dict[str, torch.Tensor]:
    """Return base plus delta of each sparse layer, as PEFT computes it."""
    return pruned_weights(model.merge_and_unload())


def test_a_plain_adapter_is_masked_and_the_loss_is_the_norm_of_what_was_dropped():
    sums, base = sums_of(make_adapted(filled=True)), pruned_weights(make_base())
    result = merge(make_adapted(filled=True))
    assert verify(result.model).ok and not result.is_exact and result.method is None
    for layer, (name, weight) in zip(result.layers, pruned_weights(result.model).items(), strict=True):
        kept = base[name] != 0
        assert layer.name == name and torch.equal(weight[kept], sums[name][kept]) and not weight[~kept].any()
        assert layer.dropped == pytest.approx(sums[name][~kept].norm().item())
        assert layer.change == pytest.approx((sums[name] - base[name]).norm().item(), abs=1e-6)
    assert result.dropped == pytest.approx(sum(layer.dropped**2 for layer in result.layers) ** 0.5)


def test_zeros_are_positive_after_a_merge():
    merged = merge_adapter(make_adapted(filled=True))
    assert all(not torch.signbit(weight[weight == 0]).any() for weight in pruned_weights(merged).values())


def test_a_merge_that_drops_something_says_so_and_an_exact_one_does_not(caplog):
    merge_adapter(make_adapted(masked=True, filled=True))
    assert not caplog.records
    merge_adapter(make_adapted(filled=True))
    assert "the masks dropped a part of norm" in caplog.text and "mask_adapter" in caplog.text


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt", "alps"])
def test_the_sum_is_pruned_anew_as_prune_does_it(method):
    calibration = None if method == "magnitude" else BATCHES
    expected = make_adapted(filled=True).merge_and_unload()
    nxm_hf.prune(expected, "2:4", method, calibration)
    result = merge(make_adapted(filled=True), method, calibration)
    assert verify(result.model).ok and result.method == method
    for one, other in zip(pruned_weights(result.model).values(), pruned_weights(expected).values(), strict=True):
        assert torch.equal(one, other)
    assert read_record(result.model).pruning["method"] == method


def test_pruning_the_sum_drops_less_of_the_weights_than_the_old_masks():
    assert merge(make_adapted(filled=True), "magnitude").dropped < merge(make_adapted(filled=True)).dropped


def test_the_record_of_the_base_stays_with_the_density_of_the_sum():
    base = make_base()
    record = read_record(base)
    merged = merge_adapter(make_adapted(base=base, masked=True, filled=True))
    found = read_record(merged)
    assert found.layers == record.layers and found.pruning == record.pruning and found.density == 0.5


def test_the_merged_model_is_plain_and_trains_on_with_its_masks(tmp_path):
    merged = merge_adapter(make_adapted(filled=True))
    assert type(merged) is type(make_bert()) and not hasattr(merged, "peft_config")
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert merged.state_dict().keys() == make_bert().state_dict().keys()
    merged.save_pretrained(tmp_path)
    assert verify(tmp_path).ok


def test_patterns_by_role_are_kept_by_a_merge():
    base = make_bert()
    nxm_hf.prune(base, {"ffn": "1:4", "default": "2:4"}, exclude="query")
    record = read_record(base)
    for method in (None, "magnitude"):
        merged = merge_adapter(make_adapted(base=copy.deepcopy(base), filled=True), method)
        assert verify(merged).ok and read_record(merged).layers == record.layers


def test_other_adapters_of_peft_are_merged_and_masked():
    merged = merge_adapter(make_adapted(filled=True, use_dora=True))
    assert verify(merged).ok


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (make_bert, {}, "merge_adapter takes a PeftModel, and got a BertForSequenceClassification"),
        (lambda: make_adapted(base=make_bert()), {}, r"no record of being sparse\. Merge with model\.merge_and_unload"),
        (make_adapted, {"calibration": BATCHES}, r"Without method=.* calibration has no effect\. Write method="),
        (make_adapted, {"samples": 3}, r"Without method=.* samples has no effect"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_what_to_write(make, options, message):
    with pytest.raises(ValueError, match=message):
        merge_adapter(make(), **options)


def test_a_quantized_base_is_refused_before_anything_changes():
    model = make_adapted(filled=True)
    model.get_base_model().hf_quantizer = SimpleNamespace()
    with pytest.raises(ValueError, match="The base of this adapter is quantized"):
        merge_adapter(model)
    assert verify(model).ok


def test_a_result_prints_a_table_and_turns_into_json():
    result = merge(make_adapted(filled=True))
    assert str(result).count("2:4") == 12 and "dropped" in str(result)
    assert result.to_dict()["dropped"] == result.dropped and len(result.to_dict()["layers"]) == 12
