"""The section of the card: the recipe in one sentence, and how to load, run and train the model."""

import json

import pytest

from nxm_hf import NxMConfig, prune
from nxm_hf.config import SparsityRecord
from nxm_hf.storage.card_text import SavedModel, made_by, section
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.verify import verify
from tests.support.models import make_bert

CLASSES = {
    "BertForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "LlamaForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "GPT2LMHeadModel": ("text-generation", "GPT2LMHeadModel"),
    "BertForMaskedLM": ("fill-mask", "AutoModelForMaskedLM"),
    "T5ForConditionalGeneration": ("text2text-generation", "T5ForConditionalGeneration"),
    "ViTForImageClassification": ("image-classification", "AutoModelForImageClassification"),
    "Wav2Vec2ForCTC": ("automatic-speech-recognition", "AutoModelForCTC"),
    "BertModel": (None, "BertModel"),
    "NobodysForNothing": (None, "AutoModel"),
    "": (None, "AutoModel"),
}


@pytest.mark.parametrize("architecture", CLASSES)
def test_the_class_of_a_model_tells_its_task_and_how_to_load_it(architecture, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture] if architecture else None}))
    saved = SavedModel.read(tmp_path)
    assert (saved.task, saved.auto_class) == CLASSES[architecture] and saved.library == "transformers"


def test_the_library_is_read_off_the_files_of_a_directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"sentence_transformers": {"version": "5"}}))
    assert (SavedModel.read(tmp_path).library, SavedModel.read(tmp_path).task) == (
        "sentence-transformers",
        "text-ranking",
    )
    (tmp_path / "modules.json").write_text("[]")
    assert SavedModel.read(tmp_path).task == "sentence-similarity"
    (tmp_path / "adapter_config.json").write_text("{}")
    assert SavedModel.read(tmp_path).library == "peft"


def test_the_recipe_is_one_sentence_with_its_link():
    record = SparsityRecord(NxMConfig("admm", warmup=0.25, settings={"rho": 0.1}, settle=0.5), {"a": "2:4"}, 0.5)
    sentence = made_by(record)
    assert "`admm` (" in sentence and "](https://arxiv.org/" in sentence and "with `{'rho': 0.1}`" in sentence
    phases = "after dense training for 0.25 of the steps, with a frozen mask for the last 0.5 of the steps."
    assert sentence.endswith(phases)
    assert made_by(SparsityRecord(NxMConfig("asp"), {"a": "2:4"}, 0.5)).count("steps") == 0
    model = make_bert()
    prune(model, "2:4")
    assert made_by(read_record(model)).startswith("It was pruned without training by `magnitude` (")


def test_the_section_says_how_to_load_run_and_train_and_shows_each_layer(tmp_path):
    model = make_bert()
    prune(model, "unstructured:0.5")
    model.save_pretrained(tmp_path)
    text = section(read_record(model), verify(model), SavedModel.read(tmp_path))
    for heading in ("Sparsity", "How to load it", "How to run it sparse", "How to train it further", "Density"):
        assert f"# {heading}\n" in text
    assert "nxm pack" not in text and "fills the zeros" in text
    assert all(f"| `{layer.name}` |" in text for layer in verify(model).layers)
    assert "| ffn_in | 2 | 4,096 | 0.5000 |" in text
