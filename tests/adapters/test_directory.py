"""`nxm merge` and `merge_directory`: a base and an adapter in directories become one sparse model in a third."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import nxm_hf
from nxm_hf import SparsityRecord, load_adapter, verify
from nxm_hf.adapters.directory import merge_directory
from nxm_hf.cli.main import main
from tests.support.adapters import make_adapted, make_base
from tests.support.models import make_batches, make_bert, make_texts, make_tokenizer
from tests.support.saving import hashes_of

pytestmark = pytest.mark.filterwarnings("default")  # those of another library are not ours
TASK = dict(task_type="SEQ_CLS")


@pytest.fixture
def base(tmp_path):
    """A sparse base with its tokenizer."""
    make_base().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def save_adapter(base, folder, masked=True, **changes):
    """Save an adapter on a base, and return the model."""
    loaded = AutoModelForSequenceClassification.from_pretrained(base)
    model = make_adapted(base=loaded, masked=masked, filled=True, **changes).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def logits(model):
    return model.eval()(**make_batches("bert")[0]).logits


@pytest.mark.parametrize("changes", [{}, TASK], ids=["no task", "task"])
def test_the_merged_directory_computes_what_the_masked_adapter_computed(base, changes, tmp_path, capsys):
    model = save_adapter(base, tmp_path / "adapter", **changes)
    assert main(["merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    assert "12 layers: the merge is exact." in capsys.readouterr().out
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(model))
    assert verify(tmp_path / "out").ok and main(["verify", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "tokenizer.json").is_file() and "12 layers" in (tmp_path / "out/README.md").read_text()
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert SparsityRecord.from_pretrained(tmp_path / "out") == SparsityRecord.from_pretrained(base)


def test_a_plain_adapter_is_masked_with_a_report_as_json(base, tmp_path, capsys):
    save_adapter(base, tmp_path / "adapter", masked=False)
    capsys.readouterr()
    assert main(["merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["dropped"] < report["change"] and len(report["layers"]) == 12 and verify(tmp_path / "out").ok


def test_the_sum_is_pruned_by_a_method_with_texts(base, tmp_path, capsys):
    save_adapter(base, tmp_path / "adapter", masked=False)
    (tmp_path / "texts.txt").write_text("\n".join(make_texts()))
    words = ["merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "out"), "--method", "sparsegpt"]
    assert main([*words, "--calibration", str(tmp_path / "texts.txt"), "--samples", "8", "--length", "8"]) == 0
    assert "pruned by sparsegpt" in capsys.readouterr().out
    assert SparsityRecord.from_pretrained(tmp_path / "out").pruning["method"] == "sparsegpt"


def test_a_base_without_a_head_gets_that_of_the_adapter(tmp_path):
    """The number of labels is not in the config of the base."""
    encoder = make_bert().bert
    nxm_hf.prune(encoder, "2:4")
    encoder.save_pretrained(tmp_path / "base")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5)
    model = make_adapted(base=loaded, masked=True, filled=True, **TASK)
    model.save_pretrained(tmp_path / "adapter")
    result = merge_directory(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert result.is_exact
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(model))
    assert merged.config.num_labels == 5 and verify(tmp_path / "out").ok


def test_a_head_that_nobody_trained_is_refused(tmp_path):
    encoder = make_bert().bert
    nxm_hf.prune(encoder, "2:4")
    encoder.save_pretrained(tmp_path / "base")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    make_adapted(base=loaded, modules_to_save=None).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds classifier\.bias, classifier\.weight\. Name the base"):
        merge_directory(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused_in_one_line(base, tmp_path, capsys):
    nxm_hf.prune(other := make_bert(hidden_size=16), "2:4")
    other.save_pretrained(tmp_path / "other")
    save_adapter(tmp_path / "other", tmp_path / "adapter")
    before = hashes_of(tmp_path)
    assert main(["merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "another model" in error and error.count("\n") == 1
    assert hashes_of(tmp_path) == before


@pytest.mark.parametrize("torn", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_torn_adapter_is_refused_in_one_line(base, torn, tmp_path, capsys):
    save_adapter(base, tmp_path / "adapter")
    (tmp_path / "adapter" / torn).write_bytes(b"{")
    assert main(["merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
    assert torn in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_place_that_is_taken_and_a_dense_base_are_refused(base, tmp_path, capsys):
    save_adapter(base, tmp_path / "adapter", masked=False)
    assert main(["merge", str(base), str(tmp_path / "adapter"), str(base)]) == 2
    assert "is there already, and nothing is overwritten" in capsys.readouterr().err
    make_bert().save_pretrained(tmp_path / "dense")
    assert main(["merge", str(tmp_path / "dense"), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
    assert "no record of being sparse" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_base_that_is_no_longer_sparse_is_refused(base, tmp_path, capsys):
    save_adapter(base, tmp_path / "adapter")
    weights = load_file(base / "model.safetensors")
    weights["bert.encoder.layer.0.attention.self.query.weight"].fill_(1.0)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert main(["merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
    assert "attention.self.query breaks 2:4" in capsys.readouterr().err
    with pytest.raises(ValueError, match="breaks 2:4"):
        load_adapter(AutoModelForSequenceClassification.from_pretrained(base), tmp_path / "adapter")
