"""Loading saved adapters, plain and masked."""

import json
import sys

import pytest
import torch

from nxm_hf import load_adapter
from nxm_hf.adapters.loading import restore_adapter
from nxm_hf.adapters.masked import is_masked
from tests.support.adapters import adapter_of, make_adapted, make_base
from tests.support.models import make_batches, make_bert
from tests.support.training import assert_same

pytestmark = pytest.mark.filterwarnings("default")  # those of another library are not ours
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])


@MASKED
@pytest.mark.parametrize("trainable", [False, True])
def test_a_loaded_adapter_computes_what_the_saved_one_computed(masked, trainable, tmp_path):
    saved = make_adapted(masked=masked, filled=True).eval()
    saved.save_pretrained(tmp_path)
    loaded = load_adapter(make_base(), tmp_path, is_trainable=trainable).eval()
    batch = make_batches("bert")[0]
    assert torch.equal(loaded(**batch).logits, saved(**batch).logits) and is_masked(loaded) is masked
    lora = [p.requires_grad for name, p in loaded.named_parameters() if "lora_" in name]
    assert lora and all(grad is trainable for grad in lora)


def test_a_masked_adapter_stays_masked_when_it_is_saved_again(tmp_path):
    make_adapted(masked=True).save_pretrained(tmp_path / "one")
    load_adapter(make_base(), tmp_path / "one").save_pretrained(tmp_path / "two")
    assert is_masked(load_adapter(make_base(), tmp_path / "two"))


@MASKED
def test_a_bias_of_the_adapter_is_loaded_too(masked, tmp_path):
    """PEFT allows such a bias with two values of init_lora_weights alone, and the mark of a masked adapter is none."""
    make_adapted(masked=masked, lora_bias=True, target_modules=["query"]).save_pretrained(tmp_path)
    assert is_masked(load_adapter(make_base(), tmp_path)) is masked


@MASKED
def test_restoring_copies_the_weights_of_a_checkpoint(masked, tmp_path):
    saved = make_adapted(masked=masked, filled=True)
    saved.save_pretrained(tmp_path)
    model = make_adapted(7, masked=masked)
    restore_adapter(tmp_path, torch.compile(model))
    assert_same(adapter_of(model), adapter_of(saved))


def test_an_adapter_of_another_model_is_refused(tmp_path):
    make_adapted().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks .* so it is of another model than this BertModel\. Load the base in"):
        load_adapter(make_base().bert, tmp_path)


def test_a_masked_adapter_on_a_dense_base_is_refused(tmp_path):
    make_adapted(masked=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no record of being sparse, so there is no mask"):
        load_adapter(make_bert(), tmp_path)


def test_a_model_with_an_adapter_and_a_folder_without_one_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json\. Name a directory that PEFT saved"):
        load_adapter(make_base(), tmp_path)
    make_adapted().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has an adapter already\. Merge it first with nxm_hf\.merge_adapter"):
        load_adapter(make_adapted(), tmp_path)


def test_without_peft_the_error_says_what_to_install(tmp_path, monkeypatch):
    make_adapted().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"Adapters need PEFT\. Install it: pip install peft\."):
        load_adapter(make_base(), tmp_path)


def test_the_directory_holds_nothing_that_peft_does_not_write(tmp_path):
    for name, masked in (("plain", False), ("masked", True)):
        make_adapted(masked=masked).save_pretrained(tmp_path / name)
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("plain", "masked")]
    assert files[0] == files[1]
    configs = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("plain", "masked")]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"init_lora_weights"}
