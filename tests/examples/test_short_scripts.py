"""The short scripts of examples/: each learns data made by code, and resumes."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers
from datasets import ClassLabel, Features, Image
from safetensors.torch import load_file
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
from tests.support.example_scripts import load as load_scripts
from tests.support.example_scripts import made_data

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # warnings of other libraries are not ours
EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(made_data.MADE)
BESIDE = {"made_data", "squad"}  # which scripts and people use
LONGEST = 80  # lines of a script that people copy; summaries have a metric of their own
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
    "summarization": ("eval_rouge1", 0.95),
    "image_classification": ("eval_accuracy", 0.9),
    "sentence_embeddings": ("eval_spearman_cosine", 0.9),
    "causal_language_model": ("eval_mean_token_accuracy", 0.3),
}
FEW_TOKENS = {"summarization": ["--generation_max_length", "4"]}  # a model that has not learned to end goes on


def load(name: str):
    """Import a script, or skip the test if a library that it needs is absent."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs {NEEDS[name]}")
    return load_scripts(name)[0]


def write_made(name: str, folder: Path, count: int = 2048) -> list[str]:
    """Write a model and rows for a script, and return the options that name them."""
    made_data.write(name, folder, count)
    names = ["--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "rows")]
    has_configs = "dataset_config_name" in (EXAMPLES / f"{name}.py").read_text()
    return [*names, "--dataset_config_name", "default"] if has_configs else names


def printed_metrics(text: str) -> dict:
    """Return the last dict in what was printed whose values are numbers."""
    found = [ast.literal_eval(line) for line in text.splitlines() if line.startswith("{'")]
    return [metrics for metrics in found if all(isinstance(value, float) for value in metrics.values())][-1]


def check_answers(folder):
    """The model names the right word in new texts, so the script gave it the right positions."""
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = made_data.questions(40, 5)
    right = 0
    for row in rows:
        batch = tokenizer(row["question"], row["context"], return_tensors="pt")
        with torch.no_grad():
            found = model(**batch)
        start, end = found.start_logits.argmax(), found.end_logits.argmax()
        right += tokenizer.decode(batch.input_ids[0, start : end + 1]) == row["answers"]["text"][0]
    assert right >= 34


def check_tags(folder):
    """The model tags the word after "not" in a new sentence, and no other."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = model(**tokenizer("word3 not word7 word9", return_tensors="pt")).logits[0, 1:-1].argmax(-1)
    assert [model.config.id2label[int(tag)] for tag in found] == ["O", "O", "NEGATED", "O"]


def check_images(folder):
    """The saved model and processor name the direction of new stripes, by the labels of the script."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor, rows = AutoImageProcessor.from_pretrained(folder), made_data.images(40, 5)
    with torch.no_grad():
        found = model(**processor(list(rows["image"]), return_tensors="pt")).logits.argmax(-1).tolist()
    names = rows.features["label"].names
    right = [model.config.id2label[label] == names[row["label"]] for label, row in zip(found, rows, strict=True)]
    assert sum(right) >= 36
    assert model.config.label2id == {name: number for number, name in enumerate(names)}


def check_summaries(folder):
    """The saved model generates the topics of new texts, and ends after them."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = made_data.summaries(40, 5)
    batch = tokenizer(["summarize: " + text for text in rows["article"]], return_tensors="pt")
    generated = model.generate(batch.input_ids)
    assert generated.shape[1] <= 8  # the start, [CLS], three topics and [SEP]; the longest that it may write is 20
    found = tokenizer.batch_decode(generated, skip_special_tokens=True)
    assert sum(summary == row["highlights"] for summary, row in zip(found, rows, strict=True)) >= 36


CHECKS = {
    "image_classification": check_images,
    "question_answering": check_answers,
    "summarization": check_summaries,
    "token_classification": check_tags,
}


@pytest.mark.parametrize(
    "summary, reference, rouge1",
    [
        ("The cat sat.", "the cat sat", 1),
        ("sat cat", "the cat sat", 4 / 5),
        ("cat cat cat", "the cat", 2 / 5),
        ("dog", "the cat", 0),
        ("", "the cat", 0),
        ("", "", 0),
    ],
)
def test_summaries_are_scored_by_the_words_that_they_share(summary, reference, rouge1):
    assert load("summarization").rouge1(summary, reference) == pytest.approx(rouge1)


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_a_script_learns_the_data_that_is_made_and_saves_a_sparse_model(name, tmp_path, capsys):
    transformers.set_seed(0)
    script, out = load(name), tmp_path / "out"
    script.main([*write_made(name, tmp_path), *LEARN, "--pattern", "1:4", "--output_dir", str(out)])
    shown = capsys.readouterr().out
    metric, least = LEARNED[name]
    assert printed_metrics(shown)[metric] > least
    assert "density 0.2500: ok" in shown and verify(out, "1:4").ok
    if name != "image_classification":
        assert AutoTokenizer.from_pretrained(out)("word1 not").input_ids
    assert AutoModel.from_pretrained(out)
    if name in CHECKS:
        CHECKS[name](out)


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_a_script_resumes_to_the_same_bits_and_trains_dense_too(name, tmp_path, capsys):
    script, names = load(name), write_made(name, tmp_path, count=32)
    few = [*names, *SHORT[:-1], "steps", "--save_steps", "1", "--max_steps", "2", *FEW_TOKENS.get(name, [])]
    for recipe in ("asp", "dense"):
        words = [*few, "--recipe", recipe, "--output_dir", str(tmp_path / recipe)]
        script.main(words)
        whole = load_file(tmp_path / recipe / "checkpoint-2/model.safetensors")
        script.main([*words, "--resume_from_checkpoint", str(tmp_path / recipe / "checkpoint-1")])
        resumed = load_file(tmp_path / recipe / "checkpoint-2/model.safetensors")
        assert all(torch.equal(weight, resumed[key]) for key, weight in whole.items())
    assert capsys.readouterr().out.count(": ok") == 2  # of the sparse model alone


@pytest.mark.parametrize("name", ["image_classification", "question_answering", "token_classification"])
def test_a_new_head_is_drawn_from_the_seed_of_the_training(name, tmp_path):
    script, names, ends = load(name), write_made(name, tmp_path, count=32), []
    if name != "image_classification":  # whose made model has no head
        AutoModel.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    for number, seed in enumerate((1, 1, 2)):
        transformers.set_seed(number)
        out = tmp_path / f"run{number}"
        script.main([*names, *SHORT, "--max_steps", "1", "--seed", str(seed), "--output_dir", str(out)])
        ends.append(load_file(out / "model.safetensors"))
    same = [all(torch.equal(weight, ends[0][key]) for key, weight in end.items()) for end in ends]
    assert same == [True, True, False]


def test_pruning_without_training_prints_the_perplexity_and_saves_the_tokenizer(tmp_path, capsys):
    name = "prune_without_training"
    script, model = load(name), write_made(name, tmp_path)[:2]
    texts = [tmp_path / "rows" / f"{split}-00000-of-00001.parquet" for split in ("train", "test")]
    words = [*model, "--calibration", str(texts[0]), "--evaluation", str(texts[1])]
    script.main([*words, "--output_dir", str(tmp_path / "first")])
    script.main([*words, "--pattern", "1:4", "--method", "wanda", "--output_dir", str(tmp_path / "second")])
    shown = capsys.readouterr().out
    assert re.findall(r"layers by (\w+), density (\S+),", shown) == [("alps", "0.5000"), ("wanda", "0.2500")]
    assert shown.count("perplexity") >= 2
    assert verify(tmp_path / "first", "2:4").ok and verify(tmp_path / "second", "1:4").ok
    assert AutoTokenizer.from_pretrained(tmp_path / "second")("word1 not").input_ids


def test_a_script_replaces_the_head_of_a_model_with_other_labels(tmp_path):
    script, names = load("image_classification"), write_made("image_classification", tmp_path, count=8)
    features = Features(image=Image(), label=ClassLabel(names=["flat", "steep"]))
    halves = made_data.Dataset.from_dict(
        {"image": list(made_data.images(8, 1)["image"]), "label": [0, 1] * 4}, features=features
    )
    for split in ("train", "validation"):
        halves.to_parquet(tmp_path / "rows" / f"{split}-00000-of-00001.parquet")
    script.main([*SHORT, "--max_steps", "1", *names, "--output_dir", str(tmp_path / "out")])
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.id2label == {0: "flat", 1: "steep"}


def test_summaries_take_their_columns_prefix_and_lengths_from_the_options(tmp_path, monkeypatch):
    script, names = load("summarization"), write_made("summarization", tmp_path, count=8)
    made = made_data.summaries(8, 1)
    renamed = made.rename_columns({"article": "text", "highlights": "summary"})
    for split in ("train", "validation"):
        renamed.to_parquet(tmp_path / "rows" / f"{split}-00000-of-00001.parquet")
    kept = []

    class Recording(script.SparseSeq2SeqTrainer):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            kept.append(self)

    monkeypatch.setattr(script, "SparseSeq2SeqTrainer", Recording)
    columns = ["--text_column", "text", "--summary_column", "summary", "--source_prefix", "not "]
    lengths = ["--max_source_length", "6", "--max_target_length", "3"]
    script.main([*SHORT, "--max_steps", "1", *names, *columns, *lengths, "--output_dir", str(tmp_path / "out")])
    (trainer,) = kept
    tokenizer = trainer.processing_class
    for row, source in zip(trainer.train_dataset, made, strict=True):
        assert tokenizer.decode(row["input_ids"]).split()[1:-1] == ["not", *source["article"].split()[:3]]
        assert tokenizer.decode(row["labels"]).split()[1:-1] == source["highlights"].split()[:1]
    assert trainer.args.generation_max_length == 3


def test_the_scripts_are_short_enough_to_copy():
    stems = {path.stem for path in EXAMPLES.glob("*.py")}
    assert stems == {*SCRIPTS, *BESIDE}
    lines = {name: len((EXAMPLES / f"{name}.py").read_text().splitlines()) for name in SCRIPTS}
    assert not {name: count for name, count in lines.items() if count > LONGEST and name != "summarization"}


def test_every_command_of_the_page_is_one_that_its_script_understands():
    blocks = re.findall(r"^```shell\n(.*?)^```$", (EXAMPLES / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    named = [Path(command[1]).stem for command in commands if command[0] == "python"]
    assert set(named) == {*SCRIPTS, "made_data"}
    assert set(LEARNED) | {"prune_without_training"} == set(SCRIPTS)
    for name, (_, path, *arguments) in zip(named, commands, strict=True):
        options = set(re.findall(r"--(\w+)", " ".join(arguments)))
        own = re.findall(r"^    (\w+): ", (EXAMPLES / f"{name}.py").read_text(), re.MULTILINE)
        assert path == f"examples/{name}.py"
        assert options - {*own} <= {"learning_rate", "output_dir", "bf16", "recipe", "resume_from_checkpoint"}
