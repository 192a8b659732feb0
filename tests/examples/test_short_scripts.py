"""The short scripts of examples/: each learns data made by code, and takes a model and data from disk."""

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from nxm_hf import verify

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # warnings of other libraries are not ours
EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
NEEDS = {
    "causal_language_model": "trl",
    "image_classification": "PIL",
    "sentence_embeddings": "sentence_transformers",
}
SHORT = ["--use_cpu", "--disable_tqdm", "True", "--report_to", "none", "--save_strategy", "no"]
LEARN = [*SHORT, "--max_steps", "96", "--per_device_train_batch_size", "32", "--learning_rate", "3e-3"]
# What each script prints of the data that it makes, and the least that a model has learned it by; chance is far below.
LEARNED = {
    "token_classification": ("eval_accuracy", 0.95),
    "question_answering": ("eval_exact_match", 0.9),
    "summarization": ("eval_exact_match", 0.9),
    "image_classification": ("eval_accuracy", 0.9),
    "sentence_embeddings": ("spearman_cosine", 0.9),
    "causal_language_model": ("eval_mean_token_accuracy", 0.3),
}


def load(name: str):
    """Import a script, or skip the test if a library that it needs is absent."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs {NEEDS[name]}")
    pytest.importorskip("datasets", reason="needs datasets")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def printed_metrics(text: str) -> dict:
    """Return the last dict in what was printed whose values are numbers."""
    found = [ast.literal_eval(line) for line in text.splitlines() if line.startswith("{'")]
    return [metrics for metrics in found if all(isinstance(value, float) for value in metrics.values())][-1]


def check_answers(folder, script):
    """The model names the right word in new texts, so the script gave it the right positions."""
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = script.make_rows(40, 5)
    right = 0
    for row in rows:
        batch = tokenizer(row["question"], row["context"], return_tensors="pt")
        with torch.no_grad():
            found = model(**batch)
        start, end = found.start_logits.argmax(), found.end_logits.argmax()
        right += tokenizer.decode(batch.input_ids[0, start : end + 1]) == row["answers"]["text"][0]
    assert right >= 34


def check_tags(folder, script):
    """The model tags the word after "not" in a new sentence, and no other."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = model(**tokenizer("word3 not word7 word9", return_tensors="pt")).logits[0, 1:-1].argmax(-1)
    assert [model.config.id2label[int(tag)] for tag in found] == ["O", "O", "NEGATED", "O"]


def check_images(folder, script):
    """The saved model and processor name the direction of new stripes, by the labels of the script."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor, rows = AutoImageProcessor.from_pretrained(folder), script.make_rows(40, 5)
    with torch.no_grad():
        found = model(**processor(list(rows["image"]), return_tensors="pt")).logits.argmax(-1).tolist()
    names = rows.features["label"].names
    right = [model.config.id2label[label] == names[row["label"]] for label, row in zip(found, rows, strict=True)]
    assert sum(right) >= 36
    assert model.config.label2id == {name: number for number, name in enumerate(names)}


def check_summaries(folder, script):
    """The saved model generates the topics of new texts, and ends after them."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = script.make_rows(40, 5)
    batch = tokenizer(list(rows["text"]), return_tensors="pt")
    generated = model.generate(batch.input_ids)
    assert generated.shape[1] <= 8  # the start, [CLS], three topics and [SEP]; the longest that it may write is 20
    found = tokenizer.batch_decode(generated, skip_special_tokens=True)
    assert sum(summary == row["summary"] for summary, row in zip(found, rows, strict=True)) >= 36


CHECKS = {
    "image_classification": check_images,
    "question_answering": check_answers,
    "summarization": check_summaries,
    "token_classification": check_tags,
}


@pytest.mark.parametrize(
    "summary, reference, exact, rouge1",
    [
        ("The cat sat.", "the cat sat", 0, 1),
        (" the cat sat\n", "the cat sat", 1, 1),
        ("sat cat", "the cat sat", 0, 4 / 5),
        ("cat cat cat", "the cat", 0, 2 / 5),
        ("dog", "the cat", 0, 0),
        ("", "the cat", 0, 0),
        ("", "", 1, 0),
    ],
)
def test_summaries_are_scored_by_the_words_that_they_share(summary, reference, exact, rouge1):
    scores = load("summarization").score(summary, reference)
    assert scores == {"exact_match": exact, "rouge1": pytest.approx(rouge1)}


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_a_script_learns_the_data_that_it_makes_and_saves_a_sparse_model(name, tmp_path, capsys):
    transformers.set_seed(0)
    script = load(name)
    script.main([*LEARN, "--pattern", "1:4", "--output_dir", str(tmp_path)])
    shown = capsys.readouterr().out
    metric, least = LEARNED[name]
    assert printed_metrics(shown)[metric] > least
    assert "density 0.2500: ok" in shown and verify(tmp_path, "1:4").ok
    if name != "image_classification":
        assert AutoTokenizer.from_pretrained(tmp_path)("word1 not").input_ids
    assert AutoModel.from_pretrained(tmp_path)
    if name in CHECKS:
        CHECKS[name](tmp_path, script)


def test_pruning_without_training_prints_the_perplexity_and_takes_a_model_and_texts_from_disk(tmp_path, capsys):
    script = load("prune_without_training")
    script.main(["--output_dir", str(tmp_path / "made")])
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"word{i} not word{i + 1}"}) + "\n" for i in range(40)))
    again = ["--model_name_or_path", str(tmp_path / "made"), "--calibration", str(texts), "--evaluation", str(texts)]
    script.main([*again, "--pattern", "1:4", "--method", "wanda", "--output_dir", str(tmp_path / "again")])
    first, second = re.findall(r"layers by (\w+), density (\S+),", capsys.readouterr().out)
    assert (first, second) == (("alps", "0.5000"), ("wanda", "0.2500"))
    assert verify(tmp_path / "made", "2:4").ok and verify(tmp_path / "again", "1:4").ok


@pytest.mark.parametrize(
    "name", ["image_classification", "question_answering", "summarization", "token_classification"]
)
def test_a_script_takes_a_model_and_data_from_disk(name, tmp_path):
    script = load(name)
    one_step = [*SHORT, "--max_steps", "1"]
    if name == "summarization":
        one_step += ["--generation_max_length", "4"]  # a model that has not learned to end goes on to the longest
    for split, seed in (("train", 1), ("validation", 2)):
        script.make_rows(16, seed).to_parquet(tmp_path / "rows" / f"{split}-00000-of-00001.parquet")
    script.main([*one_step, "--recipe", "dense", "--output_dir", str(tmp_path / "one")])
    names = ["--model_name_or_path", str(tmp_path / "one"), "--dataset_name", str(tmp_path / "rows")]
    script.main([*one_step, *names, "--recipe", "asp", "--output_dir", str(tmp_path / "two")])
    assert verify(tmp_path / "two", "2:4").ok


def test_a_script_replaces_the_head_of_a_model_with_other_labels(tmp_path):
    script = load("image_classification")
    start, rows = tmp_path / "start", script.make_rows(8, 1)
    one_step = [*SHORT, "--max_steps", "1"]
    script.main([*one_step, "--recipe", "dense", "--output_dir", str(start)])
    features = script.Features(image=script.Image(), label=script.ClassLabel(names=["flat", "steep"]))
    halves = script.Dataset.from_dict({"image": list(rows["image"]), "label": [0, 1] * 4}, features=features)
    for split in ("train", "validation"):
        halves.to_parquet(tmp_path / "rows" / f"{split}-00000-of-00001.parquet")
    names = ["--model_name_or_path", str(start), "--dataset_name", str(tmp_path / "rows")]
    script.main([*one_step, *names, "--output_dir", str(tmp_path / "out")])
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.id2label == {0: "flat", 1: "steep"}


def test_summaries_take_their_columns_prefix_and_lengths_from_the_options(tmp_path, monkeypatch):
    script = load("summarization")
    made = script.make_rows(8, 1)
    renamed = made.rename_columns({"text": "article", "summary": "highlights"})
    for split in ("train", "validation"):
        renamed.to_parquet(tmp_path / "rows" / f"{split}-00000-of-00001.parquet")
    kept = []

    class Recording(script.SparseSeq2SeqTrainer):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            kept.append(self)

    monkeypatch.setattr(script, "SparseSeq2SeqTrainer", Recording)
    columns = ["--text_column", "article", "--summary_column", "highlights", "--source_prefix", "not "]
    lengths = ["--max_source_length", "6", "--max_target_length", "3"]
    names = ["--dataset_name", str(tmp_path / "rows"), "--output_dir", str(tmp_path / "out")]
    script.main([*SHORT, "--max_steps", "1", *columns, *lengths, *names])
    (trainer,) = kept
    tokenizer = trainer.processing_class
    for row, source in zip(trainer.train_dataset, made, strict=True):
        assert tokenizer.decode(row["input_ids"]).split()[1:-1] == ["not", *source["text"].split()[:3]]
        assert tokenizer.decode(row["labels"]).split()[1:-1] == source["summary"].split()[:1]
    assert trainer.args.generation_max_length == 3


def test_every_command_of_the_page_is_one_that_its_script_understands():
    blocks = re.findall(r"^```shell\n(.*?)^```$", (EXAMPLES / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    named = [Path(command[1]).stem for command in commands]
    assert sorted(named) == sorted(2 * SCRIPTS)  # once by itself, once with a model from the Hub
    assert set(LEARNED) | {"prune_without_training"} == set(SCRIPTS)
    for name, (_, path, *arguments) in zip(named, commands, strict=True):
        options = set(re.findall(r"--(\w+)", " ".join(arguments)))
        own = re.findall(r"^    (\w+): ", (EXAMPLES / f"{name}.py").read_text(), re.MULTILINE)
        assert path == f"examples/{name}.py" and options - {*own} <= {"learning_rate", "output_dir", "bf16"}
