"""Shipping: a saved sparse model is a plain model that needs nothing of ours, and a broken one is never written."""

import fnmatch
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub import HfApi, ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizer, Trainer, TrainerCallback

from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, verify
from nxm_hf.layers.find import find_layers
from tests.support.models import assert_equal_weights, make_arguments, make_bert, make_rows

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
DECODER = dict(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=1)
T5 = dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=50, decoder_start_token_id=0)
FAMILIES = {
    "bert": ("AutoModelForSequenceClassification", SMALL),
    "albert": ("AutoModelForSequenceClassification", {**SMALL, "embedding_size": 16}),
    "deberta-v2": (
        "AutoModelForSequenceClassification",
        {**SMALL, "relative_attention": True, "pos_att_type": "p2c|c2p"},
    ),
    "gpt2": ("AutoModelForCausalLM", DECODER),
    "t5": ("AutoModelForSeq2SeqLM", T5),
    "vit": ("AutoModelForImageClassification", {**SMALL, "image_size": 8, "patch_size": 4}),
    "nomic_bert": ("AutoModelForSequenceClassification", SMALL),
}
HERE = [name for name in FAMILIES if name in transformers.CONFIG_MAPPING]
# What a machine without this library does: load every directory, and say what the model answers.
ELSEWHERE = """
import sys
sys.modules["nxm_hf"] = None  # importing it would be an error
import torch, transformers
torch.set_num_threads(1)
answers = {}
for folder, auto, inputs in torch.load(sys.argv[1]):
    if auto == "pipeline":
        answer = transformers.pipeline("text-classification", folder, device="cpu")
        answers[folder] = answer(inputs, top_k=None, function_to_apply="none")
        continue
    model = getattr(transformers, auto).from_pretrained(folder).eval()
    with torch.no_grad():
        answers[folder] = model(**inputs).logits
assert not any(name.startswith("nxm_hf.") for name in sys.modules)
torch.save(answers, sys.argv[2])
"""


def _inputs(family, rows):
    if family == "vit":
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    inputs = {name: torch.stack([row[name] for row in rows[:4]]) for name in ("input_ids", "attention_mask")}
    return {**inputs, "decoder_input_ids": inputs["input_ids"]} if family == "t5" else inputs


def _rows(family, rows):
    if family == "vit":
        pixels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        return [{"pixel_values": image, "labels": torch.tensor(i % 2)} for i, image in enumerate(pixels)]
    if family in ("gpt2", "t5"):
        return [{**row, "labels": row["input_ids"]} for row in rows[:16]]
    return rows[:16]


def _model(family):
    auto, words = FAMILIES[family]
    torch.manual_seed(0)
    return getattr(transformers, auto).from_config(AutoConfig.for_model(family, **words))


def _tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    return BertTokenizer({word: index for index, word in enumerate(words)})


def _train(folder, model, rows, sparsity="asp", **changes):
    changes = {"max_steps": 2, "save_strategy": "no", **changes}
    trainer = NxMTrainer(model, make_arguments(folder, **changes), train_dataset=rows, sparsity=sparsity)
    trainer.train()
    return trainer


def _hashes(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# -- without this library ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Family -> a trained sparse model and its directory."""
    rows, found = make_rows(), {}
    for family in HERE:
        folder = tmp_path_factory.mktemp(family)
        trainer = _train(folder / "run", _model(family), _rows(family, rows))
        trainer.save_model(folder / "whole")
        trainer.model.save_pretrained(folder / "shards", max_shard_size="20KB")
        found[family] = (trainer.model.eval(), folder)
    return found


@pytest.fixture(scope="module")
def answers(families, tmp_path_factory):
    """Directory -> the logits that another process, which cannot import this library, gets from it."""
    folder, rows = tmp_path_factory.mktemp("elsewhere"), make_rows()
    asked = [
        (str(place / kind), FAMILIES[family][0], _inputs(family, rows))
        for family, (_, place) in families.items()
        for kind in ("whole", "shards")
    ]
    model, place = families["bert"]
    model.save_pretrained(place / "pipeline")
    _tokenizer().save_pretrained(place / "pipeline")
    asked.append((str(place / "pipeline"), "pipeline", "a b c"))
    torch.save(asked, folder / "asked.pt")
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, folder / "asked.pt", folder / "answers.pt"], check=True, cwd=folder
    )
    return torch.load(folder / "answers.pt")


def test_the_families_that_this_version_of_transformers_has_are_most():
    assert len(HERE) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "shards"])
@pytest.mark.parametrize("family", HERE)
def test_a_directory_gives_the_same_logits_where_this_library_is_absent(family, kind, families, answers, rows):
    """Pitfalls 2 and 28: plain safetensors with the zeros in them, in one file or several."""
    model, folder = families[family]
    with torch.no_grad():
        logits = model(**_inputs(family, rows)).logits
    assert torch.equal(answers[str(folder / kind)], logits)
    assert len(list((folder / kind).glob("*.safetensors"))) > (kind == "shards")


@pytest.mark.parametrize("kind", ["whole", "shards"])
@pytest.mark.parametrize("family", HERE)
def test_a_directory_of_every_family_verifies(family, kind, families):
    model, folder = families[family]
    for report in (verify(folder / kind), verify(model)):
        assert report.ok and report.density == 0.5
        assert {layer.name for layer in report.layers} == {layer.name for layer in find_layers(model)}


def test_shared_layers_are_shipped_once_and_transposed_ones_along_their_inputs(families):
    """Pitfall 19: Conv1D of GPT-2 keeps [in, out]; its groups stand along the first dimension."""
    assert len(verify(families["albert"][1] / "whole").layers) == 6
    weight = families["gpt2"][0].transformer.h[0].attn.c_attn.weight
    assert weight.shape == (32, 96)
    assert ((weight.reshape(8, 4, 96) != 0).sum(1) == 2).all()
    assert not ((weight.reshape(32, 24, 4) != 0).sum(-1) == 2).all()


@pytest.mark.slow
def test_a_pipeline_loads_it_where_this_library_is_absent(families, answers):
    model, folder = families["bert"]
    with torch.no_grad():
        logits = model(**_tokenizer()("a b c", return_tensors="pt")).logits[0]
    found = answers[str(folder / "pipeline")]
    # Not to the last bit: on some CPUs a pipeline's sums end otherwise there than a plain forward pass.
    expected = {f"LABEL_{i}": pytest.approx(x.item(), rel=1e-4) for i, x in enumerate(logits)}
    assert {x["label"]: x["score"] for x in found} == expected


# -- what stands beside the weights ------------------------------------------------------------------------------------


def test_a_saved_model_carries_its_config_a_card_and_no_state(rows, tmp_path):
    trainer = _train(tmp_path / "run", make_bert(), rows, NxMConfig("ste", "1:4", {"refresh": 2}, settle=0.5))
    trainer.save_model(tmp_path / "end")
    names = {path.name for path in (tmp_path / "end").iterdir()}
    assert names == {"config.json", "model.safetensors", "nxm_config.json", "README.md", "training_args.bin"}
    config = NxMConfig.from_pretrained(tmp_path / "end")
    assert config == NxMConfig("ste", "1:4", {"refresh": 2}, settle=0.5) and config.density == 0.25
    assert json.loads((tmp_path / "end" / "config.json").read_text())["nxm_config"] == config.to_dict()
    card = ModelCard.load(tmp_path / "end" / "README.md")
    assert "nxm-hf" in card.data.tags
    assert "| `bert.encoder.layer.0.intermediate.dense` | ffn_in | 64x32 | 1:4 | 0.2500 |" in card.text
    assert "recipe `ste` with `{'refresh': 2}`" in card.text and "settle 0.5" in card.text


def test_the_section_of_the_card_is_replaced_and_the_users_words_stay(rows, tmp_path):
    trainer = _train(tmp_path / "run", make_bert(), rows)
    path = tmp_path / "end" / "README.md"
    path.parent.mkdir()
    path.write_text("---\nlicense: mit\ntags:\n- mine\n---\n\n# My model\n\nBefore.\n")
    trainer.save_model(path.parent)
    path.write_text(path.read_text() + "\nAfter.\n")
    once = path.read_text()
    trainer.save_model(path.parent)
    trainer.save_model(path.parent)
    assert path.read_text().split() == once.split()
    card = ModelCard.load(path)
    assert card.data.license == "mit" and card.data.tags == ["mine", "nxm-hf"]
    assert card.text.count("## Sparsity") == 1
    assert card.text.index("Before.") < card.text.index("## Sparsity") < card.text.index("After.")


def test_a_later_plain_save_keeps_the_stamp(rows, tmp_path):
    model = _train(tmp_path / "run", make_bert(), rows).model
    model.save_pretrained(tmp_path / "one")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    assert not (tmp_path / "two" / "nxm_config.json").exists()
    assert NxMConfig.from_pretrained(tmp_path / "two").layers == {layer.name: "2:4" for layer in find_layers(model)}
    assert verify(tmp_path / "two").ok


@pytest.mark.parametrize("recipe", ["admm", "ste"])
def test_a_model_in_training_does_not_carry_the_stamp(recipe, rows, tmp_path):
    class PlainSaves(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            model.save_pretrained(tmp_path / f"step-{state.global_step}")

    trainer = NxMTrainer(
        make_bert(),
        make_arguments(tmp_path / "run", max_steps=3, save_steps=1),
        train_dataset=rows,
        sparsity=recipe,
        callbacks=[PlainSaves()],
    )
    trainer.train()
    for step in (1, 2, 3):
        words = json.loads((tmp_path / f"step-{step}" / "config.json").read_text())
        assert "nxm_config" not in words
        with pytest.raises(FileNotFoundError, match="Say what it should hold"):
            verify(tmp_path / f"step-{step}")
        assert verify(tmp_path / "run" / f"checkpoint-{step}").ok
    assert "nxm_config" in trainer.model.config.to_dict()


@pytest.mark.parametrize("sparsity", ["dense", NxMConfig("admm", "dense")], ids=["recipe", "pattern"])
def test_a_sparse_model_that_is_trained_densely_loses_its_stamp(sparsity, rows, tmp_path):
    model = _train(tmp_path / "run", make_bert(), rows).model
    trainer = _train(tmp_path / "dense", model, rows, sparsity)
    trainer.save_model(tmp_path / "end")
    assert "nxm_config" not in json.loads((tmp_path / "end" / "config.json").read_text())
    assert not (tmp_path / "end" / "nxm_config.json").exists()


# -- what is broken is not written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["new", "old"])
def test_a_model_that_breaks_its_pattern_is_an_error_before_any_file_changes(target, rows, tmp_path):
    """Pitfall 5: sparsity that got lost after training is found at the save."""
    trainer = _train(tmp_path / "run", make_bert(), rows)
    if target == "old":
        trainer.save_model(tmp_path / "end")
    before = _hashes(tmp_path)
    with torch.no_grad():
        trainer.model.bert.encoder.layer[0].output.dense.weight.add_(1e-3)
    with pytest.raises(ValueError, match=r"nothing was written:\n  bert\.encoder\.layer\.0\.output\.dense breaks 2:4"):
        trainer.save_model(tmp_path / "end")
    assert _hashes(tmp_path) == before and (tmp_path / "end").exists() == (target == "old")


def test_saving_before_training_is_an_error_that_says_to_train(rows, tmp_path):
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path / "run"), train_dataset=rows, sparsity="admm")
    before = _hashes(tmp_path)
    with pytest.raises(ValueError, match=r"nothing was written. Call trainer\.train\(\)"):
        trainer.save_model(tmp_path / "end")
    assert _hashes(tmp_path) == before


def test_training_on_with_a_plain_trainer_is_reported(rows, tmp_path):
    """Pitfall 5: nobody enforces the mask there, so the record is broken; `verify` says so."""
    _train(tmp_path / "run", make_bert(), rows).save_model(tmp_path / "end")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "end")
    plain = Trainer(model, make_arguments(tmp_path / "plain", max_steps=1, save_strategy="no"), train_dataset=rows)
    plain.train()
    plain.save_model(tmp_path / "after")
    for report in (verify(model), verify(tmp_path / "after")):
        assert len(report.problems) == 12 and all("breaks 2:4 in" in problem for problem in report.problems)
    with pytest.raises(ValueError, match="trained on without nxm_hf"):
        NxMTrainer(model, make_arguments(tmp_path / "again"), train_dataset=rows)


# -- sparse models trained again ---------------------------------------------------------------------------------------


def test_a_sparse_model_trained_without_sparsity_keeps_its_mask_and_says_so(rows, tmp_path, caplog):
    _train(tmp_path / "run", make_bert(), rows, NxMConfig("ste", "1:4", exclude=["key"])).save_model(tmp_path / "end")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "end")
    masks = {layer.name: layer.weight != 0 for layer in find_layers(model)}
    before = {layer.name: layer.weight.detach().clone() for layer in find_layers(model)}
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer = NxMTrainer(model, make_arguments(tmp_path / "on", save_strategy="no"), train_dataset=rows)
    (record,) = caplog.records
    assert "sparse already (1:4); training keeps its mask" in record.message
    trainer.train()
    trainer.save_model(tmp_path / "again")
    for layer in find_layers(model):
        assert torch.equal(layer.weight != 0, masks[layer.name])
        assert not torch.equal(layer.weight, before[layer.name])
    assert verify(tmp_path / "again").density == 0.25
    config = NxMConfig.from_pretrained(tmp_path / "again")
    assert (config.recipe, config.pattern, config.exclude) == ("asp", "1:4", ["key"])


def test_a_sparse_model_given_sparsity_restarts_and_says_so(rows, tmp_path, caplog):
    model = _train(tmp_path / "run", make_bert(), rows).model
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer = _train(tmp_path / "on", model, rows, NxMConfig("ste", "4:8"), max_steps=12)
    assert "sparse already; training restarts from its weights with 'ste'" in caplog.records[0].message
    assert verify(trainer.model).ok and NxMConfig.from_dict(model.config.nxm_config).pattern == "4:8"
    assert not verify(trainer.model, "2:4").ok  # the mask moved


def test_a_dense_model_without_sparsity_is_an_error_that_says_what_to_type(rows, arguments):
    with pytest.raises(ValueError, match=r'needs sparsity=, as in sparsity=NxMConfig\(pattern="2:4", recipe="admm"\)'):
        NxMTrainer(make_bert(), arguments(), train_dataset=rows)


# -- the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    """The folders that would have been uploaded, as copies of just the files that would have gone."""
    found = []

    def upload(self, *, repo_id, folder_path, ignore_patterns=(), run_as_future=False, path_in_repo=None, **kwargs):
        target = tmp_path / "hub" / str(len(found))
        for path in Path(folder_path).rglob("*"):
            name = path.relative_to(folder_path)
            ignored = any(
                fnmatch.fnmatch(str(name), f"{p}/*") or fnmatch.fnmatch(str(name), p) for p in ignore_patterns
            )
            if path.is_file() and not ignored:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        found.append((repo_id, path_in_repo, target))
        done = Future()
        done.set_result(None)
        return done if run_as_future else None

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/sparse"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return found


# transformers shows progress bars again after a push, whatever the environment says.
BARS = pytest.mark.filterwarnings("ignore:Cannot enable progress bars:UserWarning")


def _check_upload(folder, density=0.5):
    """What a stranger needs of a pushed folder."""
    assert verify(folder).ok and verify(folder).density == density
    AutoModelForSequenceClassification.from_pretrained(folder)
    assert NxMConfig.from_pretrained(folder).density == density
    card = ModelCard.load(folder / "README.md")
    assert card.data.tags.count("nxm-hf") == 1
    assert card.text.count("## Sparsity") == 1
    assert (folder / "nxm_config.json").is_file()
    assert not list(folder.rglob("nxm_state*")) and not list(folder.rglob(".nxm_state*"))


def test_what_is_pushed_at_the_end_is_whole_and_our_section_stands_in_it_once(rows, tmp_path, uploads):
    trainer = _train(tmp_path / "run", make_bert(), rows, "admm", save_strategy="steps", save_steps=1)
    trainer.push_to_hub()
    trainer.push_to_hub(tags="mine")
    assert [(repo, place) for repo, place, _ in uploads] == [("me/sparse", None)] * 2
    for _, _, folder in uploads:
        _check_upload(folder)
        again = AutoModelForSequenceClassification.from_pretrained(folder)
        assert_equal_weights(again, trainer.model)
    assert "mine" in ModelCard.load(uploads[1][2] / "README.md").data.tags


@BARS
@pytest.mark.parametrize("recipe", ["admm", "ste"])
def test_what_is_pushed_in_mid_training_is_whole_too(recipe, rows, tmp_path, uploads):
    """The Trainer copies to the Hub's folder only files that it knows; the others must come from us."""
    arguments = make_arguments(tmp_path / "run", max_steps=4, save_steps=2, push_to_hub=True, hub_always_push=True)
    trainer = NxMTrainer(make_bert(), arguments, train_dataset=rows, sparsity=recipe)
    trainer.train()
    assert len(uploads) == 2
    for step, (_, _, folder) in zip((2, 4), uploads, strict=True):
        _check_upload(folder)
        checkpoint = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        assert_equal_weights(AutoModelForSequenceClassification.from_pretrained(folder), checkpoint)
    trainer.push_to_hub()
    _check_upload(uploads[-1][2])


def test_a_broken_model_is_not_pushed_and_no_file_changes(rows, tmp_path, uploads):
    trainer = _train(tmp_path / "run", make_bert(), rows)
    trainer.save_model()
    before = _hashes(tmp_path)
    with torch.no_grad():
        trainer.model.bert.encoder.layer[0].output.dense.weight.add_(1e-3)
    with pytest.raises(ValueError, match="nothing was written"):
        trainer.push_to_hub()
    assert _hashes(tmp_path) == before and not uploads


@BARS
def test_a_plain_trainer_with_our_callback_pushes_whole_folders_too(rows, tmp_path, uploads):
    arguments = make_arguments(tmp_path / "run", max_steps=4, save_steps=2, push_to_hub=True, hub_always_push=True)
    trainer = Trainer(make_bert(), arguments, train_dataset=rows, callbacks=[NxMCallback("admm")])
    trainer.train()
    assert len(uploads) == 2
    for _, _, folder in uploads:
        _check_upload(folder)
    trainer.push_to_hub()
    assert verify(uploads[-1][2]).ok and "nxm-hf" in ModelCard.load(uploads[-1][2] / "README.md").data.tags
    assert (uploads[-1][2] / "nxm_config.json").is_file()
