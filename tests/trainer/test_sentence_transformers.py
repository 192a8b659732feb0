"""The Trainers of sentence-transformers, where it is installed; `test_containers.py` tests the mechanism everywhere."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import nxm_hf
from nxm_hf import NxMCallback, NxMTrainer, verify
from nxm_hf.layers.find import find_layers
from tests.support.models import assert_equal_weights, make_bert, make_texts, make_tokenizer
from tests.support.training import KINDS, is_sparse

sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
datasets = pytest.importorskip("datasets", reason="needs datasets")
pytestmark = pytest.mark.filterwarnings("default")  # those of another library are not ours

HOW_TO = Path(__file__).parents[2] / "docs/howto/sentence-transformers.md"
EVERY = pytest.mark.parametrize(("family", "kind"), [(f, k) for f in ("encoder", "cross encoder") for k in KINDS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of two layers with its tokenizer, as a directory."""
    folder = tmp_path_factory.mktemp("model")
    make_bert(problem_type=None).bert.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def load(family, folder):
    torch.manual_seed(0)
    if family == "encoder":
        return sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return sentence_transformers.CrossEncoder(str(folder), num_labels=1, device="cpu")


def parts_of(family):
    """Return the Trainer, its arguments, and a loss."""
    if family == "encoder":
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

        return SentenceTransformerTrainer, SentenceTransformerTrainingArguments, CosineSimilarityLoss
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

    return CrossEncoderTrainer, CrossEncoderTrainingArguments, losses.BinaryCrossEntropyLoss


def make_trainer(family, kind, folder, out, sparsity="sr-ste", **changes):
    base, arguments, loss = parts_of(family)
    texts = make_texts(64)
    rows = {"one": texts[:32], "other": texts[32:], "label": [number % 5 / 4 for number in range(32)]}
    words = dict(max_steps=4, per_device_train_batch_size=8, save_steps=2, eval_strategy="steps", eval_steps=2)
    words |= dict(learning_rate=1e-3, use_cpu=True, report_to=[], disable_tqdm=True, seed=0)
    model, data = load(family, folder), datasets.Dataset.from_dict(rows)
    options = dict(model=model, args=arguments(str(out), **{**words, **changes}), loss=loss(model))
    options |= dict(train_dataset=data, eval_dataset=data.select(range(8)))
    if kind == "NxMTrainer":
        return type("Sparse", (NxMTrainer, base), {})(**options, sparsity=sparsity)
    return base(**options, callbacks=[NxMCallback(sparsity)])


@EVERY
def test_a_training_saves_resumes_and_verifies(family, kind, folder, tmp_path):
    trainer = make_trainer(family, kind, folder, tmp_path, load_best_model_at_end=True)
    trainer.train()
    trainer.save_model(tmp_path / "end")
    for place in (tmp_path / "end", tmp_path / "checkpoint-2"):
        assert verify(place).ok and (place / "nxm_config.json").is_file()
        assert "## Sparsity" in (place / "README.md").read_text() and (place / "modules.json").is_file()
    assert verify(trainer.model).ok
    loaded = load(family, tmp_path / "end")
    assert_equal_weights(loaded, trainer.model)
    assert verify(loaded).ok
    assert is_sparse(AutoModel.from_pretrained(tmp_path / "end"))
    trainer.model.save_pretrained(str(tmp_path / "hand"))
    assert verify(tmp_path / "hand").ok

    resumed = make_trainer(family, kind, folder, tmp_path, load_best_model_at_end=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal_weights(resumed.model, trainer.model)


@pytest.mark.parametrize("family", ["encoder", "cross encoder"])
def test_admm_prunes_with_the_rows_of_the_training_data(family, folder, tmp_path, caplog):
    with caplog.at_level("INFO", "nxm_hf"):
        make_trainer(family, "NxMCallback", folder, tmp_path, "admm").train()
    assert [record.message for record in caplog.records if "alps pruned 12 layers" in record.message]


@pytest.mark.parametrize("family", ["encoder", "cross encoder"])
def test_pruning_without_training_reads_texts_with_the_models_own_tokenizer(family, folder, tmp_path):
    model, texts = load(family, folder), make_texts()
    plain = AutoModel.from_pretrained(folder)
    nxm_hf.prune(model, "2:4", "wanda", texts)
    nxm_hf.prune(plain, "2:4", "wanda", texts, tokenizer=make_tokenizer())
    for ours, expected in zip(find_layers(model), find_layers(plain), strict=True):
        assert ours.name.removeprefix("bert.") == expected.name and torch.equal(ours.weight, expected.weight)
    model.save_pretrained(str(tmp_path))
    assert verify(tmp_path).ok


def test_the_how_to_runs_as_it_is_written_with_a_model_that_is_here(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", HOW_TO.read_text(), re.MULTILINE | re.DOTALL)
    shutil.copytree(folder, "model")
    tokenizer = json.loads(Path("model/tokenizer.json").read_text())
    words = sorted({word for text in re.findall(r'"(.*?)"', blocks[0]) for word in re.findall(r"\w+|[^\w\s]+", text)})
    tokenizer["model"]["vocab"] |= {word: 4 + number % 46 for number, word in enumerate(words)}  # it knows our texts
    Path("model/tokenizer.json").write_text(json.dumps(tokenizer))
    names: dict = {}
    for block in blocks:
        exec(re.sub(r'^MODEL = ".*"$', 'MODEL = "model"', block, flags=re.MULTILINE), names)
    assert len(blocks) == 2 and verify("sparse-encoder").ok and verify("pruned-encoder").ok
    assert names["embeddings"].shape == (1, 32)
