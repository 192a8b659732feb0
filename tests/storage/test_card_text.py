"""The section of the card: the recipe in one sentence, and how to load, run and train the model."""

import ast
import json
import re

import pytest
import torch

from nxm_hf import NxMConfig, prune, pruners, recipes
from nxm_hf.config import SparsityRecord
from nxm_hf.storage.card_text import PLACE, SavedModel, made_by, section
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.packed_directory import save_packed
from nxm_hf.storage.verify import verify
from tests.support.models import make_bert
from tests.support.saved_models import edit_config

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


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_code_to_load_a_model_reads_the_files_that_are_there(variant, tmp_path, monkeypatch):
    prune(model := make_bert(), "2:4")
    model.save_pretrained(tmp_path / PLACE, variant=variant)
    text = section(read_record(model), verify(model), SavedModel.read(tmp_path / PLACE))
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(from transformers .*?)```", text, re.DOTALL)[1], found := {})
    assert all(map(torch.equal, found["model"].state_dict().values(), model.state_dict().values()))


def made(name, how, settings):
    """Return the record of a model that a recipe has trained, or a method has pruned."""
    pruning = {"method": name, "settings": settings} if how is pruners else None
    config = NxMConfig("asp") if how is pruners else NxMConfig(name, settings=settings)
    return SparsityRecord(config, {"a": "2:4"}, 0.5, pruning=pruning)


@pytest.mark.parametrize(
    ("how", "name"),
    [(how, name) for how in (recipes, pruners) for name in how.names()],
    ids=lambda each: str(each)[:20],
)
def test_every_recipe_and_method_is_described_with_its_paper_and_settings(how, name):
    sentence, paper = how.describe(name)
    said = made_by(made(name, how, {}))
    source, _, link = paper.rpartition(", ")
    assert f"`{name}` ({sentence.rstrip('.')}; " in said
    assert (f"; [{source}]({link}))" if link.startswith("https://") else f"; {paper})") in said
    assert ("without training" in said) == (how is pruners)


def test_a_recipe_or_method_that_is_not_known_here_is_named_alone():
    """A directory may come from a newer version."""
    assert made_by(made("nobodys", pruners, {"a": 1})) == (
        "It was pruned without training by `nobodys` with `{'a': 1}`."
    )


FOLDERS = {
    "plain": ({}, "AutoModelForSequenceClassification.from_pretrained"),
    "sentences": ({"modules.json": "[]"}, "SentenceTransformer"),
    "pairs": ({}, "CrossEncoder"),
    "packed": ({}, "AutoModelForSequenceClassification.from_pretrained"),
    "adapter": ({"adapter_config.json": '{"base_model_name_or_path": "bert"}'}, None),
    "masked adapter": (
        {"adapter_config.json": '{"base_model_name_or_path": "bert", "init_lora_weights": "masked_by_nxm_hf"}'},
        None,
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_examples_of_a_card_are_programs_that_import_what_they_use(kind, tmp_path):
    files, loader = FOLDERS[kind]
    prune(model := make_bert(), {"ffn": "2:4", "default": "unstructured:0.5"})
    if kind == "packed":
        save_packed(model, tmp_path / kind)
    else:
        model.save_pretrained(tmp_path / kind)
    for name, text in files.items():
        (tmp_path / kind / name).write_text(text)
    if kind == "pairs":
        edit_config(tmp_path / kind, sentence_transformers={"version": "5"})
    text = section(read_record(model), verify(model), SavedModel.read(tmp_path / kind))
    programs = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    known = {"model", "args", "rows", "print"}  # of the reader
    for program in programs:
        tree = ast.parse(program)
        names = {alias.name for node in ast.walk(tree) for alias in getattr(node, "names", ())}
        assert isinstance(tree.body[0], ast.Import | ast.ImportFrom)
        used = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}
        assert used <= names | known
    loading = text.partition("### How to load it")[2].partition("###")[0]
    is_adapter = loader is None
    assert (f"model = {loader}(" in loading) != is_adapter and ("base model `bert`" in loading) == is_adapter
    assert ("nxm_hf.load_adapter" in loading) == (kind == "masked adapter")
    assert ("PeftModel.from_pretrained" in loading) == (kind == "adapter")
    assert ("import nxm_hf  # transformers then knows" in loading) == ("nxm unpack" in loading) == (kind == "packed")
    assert ("plain weights with zeros" in loading) == (kind in ("plain", "sentences", "pairs"))
    assert ("How to run it sparse" in text) != is_adapter
    assert ("nxm pack " in text) == (kind in ("plain", "sentences", "pairs")), "some of its layers can be packed"
    assert "| query | 2 | 2,048 | 0.5000 |" in text and text.count("|---|") >= 2
