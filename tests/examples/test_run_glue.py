"""run_glue.py: every task, every way to give it rows, what it writes, and the models that its README names."""

import json
from pathlib import Path

import evaluate
import numpy as np
import pandas
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nxm_hf import verify
from tests.support.example_scripts import demo, glue_data, run_glue
from tests.support.models import assert_equal_weights

TASKS = glue_data.TASKS
README = Path(demo.__file__).with_name("README.md").read_text()
SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
TRAINING = "--do_train --do_eval --max_steps 2 --save_strategy no --use_cpu --disable_tqdm true --learning_rate 1e-2"


@pytest.fixture(scope="module")
def shape(tmp_path_factory) -> Path:
    """The demo's tokenizer and the shape of its model."""
    folder = tmp_path_factory.mktemp("shape")
    demo.write_shape(folder)
    return folder


def sentences(count: int, seed: int) -> list[str]:
    return [row["sentence1"] for row in demo.make_pairs(count, seed, negation=True)]


def rows_of(task: str, count: int, seed: int) -> dict[str, list]:
    """Made-up rows with a task's columns, and one that is nobody's."""
    wanted = TASKS[task]
    labels = [i % len(wanted.labels) for i in range(count)] if wanted.labels else [i / count * 5 for i in range(count)]
    texts = {text: sentences(count, seed + i) for i, text in enumerate(wanted.texts)}
    return {"idx": list(range(count)), **texts, "label": labels}


def write(folder: Path, task: str, kind: str, splits: dict[str, int]) -> Path:
    """A directory of files of one kind."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate(splits.items()):
        frame = pandas.DataFrame(rows_of(task, count, 10 * seed))
        path = folder / f"{split}.{kind}"
        if kind == "parquet":
            frame.to_parquet(path)
        elif kind == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=True)
    return folder


def arguments(shape: Path, out: Path, more: str = "", recipe: str = "asp") -> list[str]:
    own = ["--model_name_or_path", str(shape), "--from_scratch", "--output_dir", str(out), "--recipe", recipe]
    return [*own, *TRAINING.split(), *more.split()]


# -- metrics ------------------------------------------------------------------------------------------------------


def by_hand(name: str, said: np.ndarray, true: np.ndarray) -> float:
    """Each metric in another form: counts of pairs, and pandas."""
    hit, alarm, miss, rest = (float(np.sum((said == a) & (true == b))) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0)))
    if name == "accuracy":
        return sum(a == b for a, b in zip(said, true, strict=True)) / len(said)
    if name == "f1":
        precision, recall = hit / max(hit + alarm, 1), hit / max(hit + miss, 1)
        return 2 * precision * recall / (precision + recall) if hit else 0.0
    if name == "matthews_correlation":
        below = ((hit + alarm) * (hit + miss) * (rest + alarm) * (rest + miss)) ** 0.5
        return (hit * rest - alarm * miss) / below if below else 0.0
    one, other = pandas.Series(said), pandas.Series(true)
    return one.corr(other) if name == "pearson" else one.rank().corr(other.rank())


@pytest.mark.parametrize("task", TASKS)
def test_the_metrics_are_those_of_glue(task):
    metric = evaluate.load(run_glue.METRIC, task)
    draw = np.random.default_rng(0)
    for likely in (0.1, 0.5, 0.9, 0.0, 1.0):
        labels = (draw.random((2, 60)) < likely).astype(int)
        scores = np.round(draw.random((2, 60)) * 5).astype(np.float32)  # with ties
        said, true = labels if TASKS[task].labels else scores
        found = metric.compute(predictions=said, references=true)
        assert TASKS[task].best in found
        assert found == pytest.approx({name: by_hand(name, said, true) for name in found}, abs=1e-6)


def test_an_unknown_metric_is_an_error_that_lists_the_tasks():
    with pytest.raises(KeyError, match="'sst-2'; choose one of cola, mrpc"):
        evaluate.load(run_glue.METRIC, "sst-2")


def test_scores_that_are_all_the_same_have_no_correlation():
    metric = evaluate.load(run_glue.METRIC, "stsb")
    for predictions, references in (([1.0, 1.0], [0.0, 1.0]), ([2.0, 3.0], [4.0, 4.0]), ([1.0], [2.0])):
        found = metric.compute(predictions=predictions, references=references)
        assert [*found] == ["pearson", "spearmanr"] and np.isnan([*found.values()]).all()


@pytest.mark.parametrize("task", ["cola", "mrpc"])
def test_labels_that_are_all_the_same_have_a_correlation_and_f1_of_zero(task):
    metric = evaluate.load(run_glue.METRIC, task)
    for predictions, references in (([0, 0], [0, 0]), ([0, 0], [0, 1]), ([1, 1], [0, 0]), ([0], [0])):
        assert metric.compute(predictions=predictions, references=references)[TASKS[task].best] == 0


def test_matthews_of_three_labels_is_the_correlation_of_their_indicators():
    """Gorodkin's R_K, by the confusion matrix."""
    said, true = np.array([0, 1, 2, 2, 1, 0, 2]), np.array([0, 1, 2, 1, 1, 2, 2])
    table = np.zeros((3, 3))
    np.add.at(table, (true, said), 1)
    total, trace, guessed, real = table.sum(), np.trace(table), table.sum(0), table.sum(1)
    below = np.sqrt((total**2 - guessed @ guessed) * (total**2 - real @ real))
    found = evaluate.load(run_glue.METRIC, "cola").compute(predictions=said, references=true)
    assert found["matthews_correlation"] == pytest.approx((trace * total - guessed @ real) / below)


# -- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "task"), list(enumerate(TASKS)))
def test_every_task_trains_evaluates_predicts_and_holds_its_pattern(number, task, shape, tmp_path):
    kind, splits = ("parquet", "csv", "jsonl")[number % 3], TASKS[task].splits
    sizes = {"train": 16, **{f"validation{s}": 6 for s in splits}, **{f"test{s}": 5 for s in splits}}
    write(tmp_path / "rows" / task, task, kind, sizes)
    options = f"--task_name {task} --dataset_name {tmp_path / 'rows'} --do_predict --pattern 1:4"
    assert run_glue.main(arguments(shape, tmp_path / "out", options)) == 0
    out = tmp_path / "out"
    results = json.loads((out / "all_results.json").read_text())
    prefixes = ["eval", *(f"eval{suffix}" for suffix in splits[1:])]
    assert {f"{prefix}_{TASKS[task].best}" for prefix in prefixes} <= set(results)
    assert results["train_samples"] == 16
    for suffix in splits:
        assert len((out / f"eval_results_{task}{suffix}.txt").read_text().splitlines()) == 1 + 6
        assert len((out / f"predict_results_{task}{suffix}.txt").read_text().splitlines()) == 1 + 5
    assert verify(out, "1:4").ok
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert tuple(model.config.id2label.values()) == (TASKS[task].labels or ("score",))
    assert (out / "nxm_config.json").exists() and AutoTokenizer.from_pretrained(out)("word1 not").input_ids


def test_the_predictions_in_the_file_are_those_that_the_metric_saw(shape, tmp_path):
    """In the order of the rows, too, which a Trainer shuffles where it groups rows by length."""
    write(tmp_path / "rows", "mrpc", "csv", {"train": 16, "validation": 40})
    more = f"--task_name mrpc --dataset_name {tmp_path / 'rows'} --train_sampling_strategy group_by_length"
    metrics = run_glue.execute(run_glue.read_options(arguments(shape, tmp_path / "out", more)))
    lines = [line.split("\t") for line in (tmp_path / "out/eval_results_mrpc.txt").read_text().splitlines()]
    assert lines[0] == ["index", "prediction", "label"]
    hits = [said == true for _, said, true in lines[1:]]
    assert [int(line[0]) for line in lines[1:]] == list(range(40))
    assert [line[2] for line in lines[1:]] == [TASKS["mrpc"].labels[i % 2] for i in range(40)]
    assert metrics["eval_accuracy"] == pytest.approx(sum(hits) / 40) and metrics["eval_samples"] == 40


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_data_of_ones_own_brings_its_labels_along(ending, shape, tmp_path):
    frame = pandas.DataFrame({"number": range(12), "text": sentences(12, 0), "label": ["no", "maybe", "yes"] * 4})
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    run_glue.main(arguments(shape, tmp_path / "out", f"--train_file {path} --validation_file {path}"))
    labels = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.label2id
    assert labels == {"maybe": 0, "no": 1, "yes": 2}
    shown = (tmp_path / "out/eval_results_custom.txt").read_text().splitlines()[1:]
    assert [line.split("\t")[2] for line in shown] == frame["label"].tolist()


def test_numbers_with_a_fraction_are_scores(shape, tmp_path):
    path = tmp_path / "rows.jsonl"
    pandas.DataFrame(rows_of("stsb", 12, 0)).to_json(path, orient="records", lines=True)
    run_glue.main(arguments(shape, tmp_path / "out", f"--train_file {path} --validation_file {path}"))
    assert "eval_pearson" in json.loads((tmp_path / "out/eval_results.json").read_text())


def test_rows_without_a_label_among_labelled_ones_are_an_error(shape, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"sentence": text, "label": 0 if i else None} for i, text in enumerate(sentences(4, 0))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match=r"rows\.jsonl has no label in row 1, column 'label'"):
        run_glue.main(
            arguments(shape, tmp_path / "out", f"--task_name cola --train_file {path} --validation_file {path}")
        )


def test_rows_held_out_are_not_trained_on_and_the_same_for_every_seed(shape, tmp_path):
    folder = write(tmp_path / "rows", "mrpc", "parquet", {"train": 40, "validation": 8})
    options = f"--task_name mrpc --dataset_name {folder} --hold_out 0.25"
    lines = [arguments(shape, tmp_path / "out", f"{options} --seed {seed}") for seed in (0, 1)]
    one, two = (glue_data.load_rows(run_glue.read_options(line).data) for line in lines)
    assert list(one["validation"]["idx"]) == list(two["validation"]["idx"]) and len(one["validation"]) == 10
    assert sorted([*one["validation"]["idx"], *one["train"]["idx"]]) == list(range(40))


def test_a_cap_on_rows_is_a_cap(shape, tmp_path):
    folder = write(tmp_path / "rows", "mrpc", "parquet", {"train": 40, "validation": 20})
    caps = "--max_train_samples 12 --max_eval_samples 7"
    run = run_glue.read_options(arguments(shape, tmp_path / "out", f"--task_name mrpc --dataset_name {folder} {caps}"))
    trainer, _, _ = run_glue.make_trainer(run)
    assert len(trainer.train_dataset) == 12 and len(trainer.eval_dataset) == 7


# -- running ------------------------------------------------------------------------------------------------------


def test_the_same_command_goes_on_from_the_newest_whole_checkpoint(shape, tmp_path):
    folder = write(tmp_path / "rows", "mrpc", "parquet", {"train": 40, "validation": 8})
    options = f"--task_name mrpc --dataset_name {folder} --lr_scheduler_type constant"
    saving = "--save_strategy steps --save_steps 2"
    written = []
    for out, steps in (("unbroken", 4), ("broken", 2), ("broken", 4)):
        run_glue.main(arguments(shape, tmp_path / out, f"{options} {saving} --max_steps {steps}", recipe="ste"))
        written.append((tmp_path / out / "checkpoint-2/trainer_state.json").stat().st_mtime_ns)
    assert written[1] == written[2], "it began again, and wrote its first checkpoint anew"
    one, other = (load_file(tmp_path / out / "model.safetensors") for out in ("unbroken", "broken"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert json.loads((tmp_path / "broken/trainer_state.json").read_text())["global_step"] == 4


def test_a_torn_checkpoint_alone_does_not_stop_a_run(shape, tmp_path):
    folder = write(tmp_path / "rows", "mrpc", "parquet", {"train": 16, "validation": 8})
    (tmp_path / "out/checkpoint-1").mkdir(parents=True)
    assert run_glue.main(arguments(shape, tmp_path / "out", f"--task_name mrpc --dataset_name {folder}")) == 0


def test_a_teacher_changes_what_is_learned(shape, tmp_path):
    folder = write(tmp_path / "rows", "mrpc", "parquet", {"train": 16, "validation": 8})
    options = f"--task_name mrpc --dataset_name {folder}"
    run_glue.main(arguments(shape, tmp_path / "teacher", options, recipe="dense"))
    run_glue.main(arguments(shape, tmp_path / "alone", options))
    taught = f"{options} --teacher {tmp_path / 'teacher'} --distillation"
    run_glue.main([*arguments(shape, tmp_path / "taught", taught), '{"weight": 1.0}'])
    alone, taught = (AutoModelForSequenceClassification.from_pretrained(tmp_path / n) for n in ("alone", "taught"))
    with pytest.raises(AssertionError, match="these weights differ"):
        assert_equal_weights(alone, taught)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--task_name sst-2 --do_train", "no task 'sst-2'; --task_name is one of cola"),
        ("--task_name mrpc", "Nothing to do; add --do_train"),
        ("--do_train", "add --task_name mrpc, or --train_file"),
        ("--task_name mrpc --do_train --hold_out 2", "--hold_out is a fraction"),
        ("--task_name mrpc --do_train --pattern 4:2", "Write '2:4'"),
        ("--task_name mrpc --do_train --recipe adm", "'admm'"),
    ],
)
def test_a_typo_says_what_to_type(typed, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run_glue.read_options(["--model_name_or_path", "x", "--output_dir", str(tmp_path), *typed.split()])


def test_a_run_without_a_model_says_so(tmp_path):
    with pytest.raises(ValueError, match="add --model_name_or_path"):
        run_glue.read_options(["--task_name", "mrpc", "--do_train", "--output_dir", str(tmp_path)])


def test_files_of_another_kind_are_refused(shape, tmp_path):
    (tmp_path / "rows.xlsx").write_text("")
    with pytest.raises(SystemExit, match=r"end in \.xlsx; they must be \.csv"):
        run_glue.main(arguments(shape, tmp_path / "out", f"--train_file {tmp_path / 'rows.xlsx'}"))


def test_a_split_that_is_missing_is_named(shape, tmp_path):
    folder = write(tmp_path / "rows", "mrpc", "parquet", {"train": 16})
    with pytest.raises(SystemExit, match=r"no rows 'validation', only train\. Add --validation_file FILE"):
        run_glue.main(arguments(shape, tmp_path / "out", f"--task_name mrpc --dataset_name {folder}"))


PAIRS = "sentence1,sentence2,label\na b,c d,0\nb c,d e,1\n"
PREMISES = PAIRS.replace("sentence1,sentence2", "premise,hypothesis")
NAMED = "text,label\na,good\nb,bad\n"


@pytest.mark.parametrize(
    ("options", "train", "other", "said"),
    [
        ("--task_name rte", PREMISES, "", "train.csv has no column of text 'sentence1' and none 'sentence2', only "
         r"premise \(text\), hypothesis \(text\), label \(int64\). Rename the columns, or leave out --task_name"),
        ("--task_name cola", "sentence,label\n1,0\n2,1\n", "", r"of text 'sentence', only sentence \(int64\)"),
        ("", NAMED.replace("text", "number").replace("a,", "1,").replace("b,", "2,"), "", "no column of text, only"),
        ("--task_name rte", PAIRS.replace("label", "gold"), "", r"no column 'label' .*gold \(int64\). Rename"),
        ("", PAIRS.replace("label", "gold"), "", r"no column 'label' with labels, only .*gold \(int64\). Rename"),
        ("", PAIRS.replace(",", ";"), "", r"only sentence1;sentence2;label \(text\); a .csv has commas"),
        ("--do_eval --validation_file", PAIRS, "sentence1,sentence2\na,b\n", "other.csv has no column 'label'"),
        ("--do_predict --test_file", PAIRS, PREMISES, "other.csv has no column .* use the same columns in all files"),
        ("--do_eval --validation_file", NAMED, "text,label\na,ugly\n", "label 'ugly'; this task's are bad, good"),
        ("", "", "", "train.csv is empty"),
        ("", "text,label\n", "", "train.csv has no rows"),
        ("", "text,label\na,1,2\nb,0\nc,1,2,3\n", "", "train.csv cannot be read: .*Expected 3 fields.* same columns"),
        ("", NAMED.replace("b,bad", ",bad"), "", "train.csv has no text in row 2, column 'text'"),
        ("", NAMED + "c,\n", "", "train.csv has no label in row 3, column 'label'"),
        ("", "text,label\na,0\nb,1\nc,\n", "", "train.csv has no label in row 3, column 'label'"),
        ("", NAMED + '"  ",good\n', "", "train.csv has no text in row 3, column 'text'"),
        ("", "text,label\na,0.5\nb,0.5\n", "", "All rows have the label 0.5; it takes two"),
        ("", "text,label\n" + "".join(f"a,id{i}\n" for i in range(11)), "", "Each of the 11 rows has a label"),
        ("", "text,label,label\na,0,1\nb,1,0\n", "", "train.csv has the column 'label' twice"),
        ("", NAMED + "c,Good\n", "", "The labels 'Good' and 'good' differ in case or spaces only"),
        ("", "text,label\na,0.5\nb,inf\n", "", "the label inf; this task's are a number"),
        ("", NAMED.replace("bad", "good"), "", "All rows have the label 'good'; it takes two"),
        ("--task_name rte", PAIRS.replace(",1", ",0.5"), "", "the label 0.5; this task's are entailment"),
        ("--task_name stsb", PAIRS.replace(",1", ",high"), "", "the label 'high'; this task's are a number"),
        ("--validation_file", None, PAIRS, "no rows 'train', only validation. Add --train_file FILE, or leave out"),
        ("--train_file absent.csv", None, "", "There is no file absent.csv"),
    ],
)  # fmt: skip
def test_a_mistake_in_own_files_ends_in_one_line(options, train, other, said, shape, tmp_path):
    typed = f"{options} {tmp_path / 'other.csv'}" if options.endswith("_file") else options
    (tmp_path / "other.csv").write_text(other)
    if train is not None:
        (tmp_path / "train.csv").write_text(train)
        typed += f" --train_file {tmp_path / 'train.csv'}"
    own = ["--model_name_or_path", str(shape), "--from_scratch", "--output_dir", str(tmp_path / "out"), "--do_train"]
    with pytest.raises(SystemExit, match=said):
        run_glue.main([*own, *typed.split()])


@pytest.mark.parametrize("labels", [([0], [1]), ({"a": 0}, {"a": 1}), (0, "one")], ids=repr)
def test_labels_that_are_not_all_numbers_or_all_names_are_an_error(labels, shape, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels))
    with pytest.raises(
        SystemExit, match=r"rows\.jsonl has labels such as .*, which are not all numbers or all names\."
    ):
        run_glue.main(arguments(shape, tmp_path / "out", f"--train_file {path} --validation_file {path}"))


def test_a_parquet_file_without_rows_is_an_error(shape, tmp_path):
    pandas.DataFrame({"text": ["a"], "label": [0]}).head(0).to_parquet(tmp_path / "rows.parquet")
    typed = f"--train_file {tmp_path / 'rows.parquet'} --validation_file {tmp_path / 'rows.parquet'}"
    with pytest.raises(SystemExit, match=r"run_glue\.py: \S*rows\.parquet has no rows\. Name a file of rows\.$"):
        run_glue.main(arguments(shape, tmp_path / "out", typed))


def test_rows_to_predict_may_have_labels_that_training_has_not(shape, tmp_path):
    """They are not read: GLUE's own test rows have the label -1."""
    (tmp_path / "train.csv").write_text(NAMED)
    (tmp_path / "test.csv").write_text("text,label\na,ugly\nb,-1\nc,good\n")
    options = f"--train_file {tmp_path / 'train.csv'} --validation_file {tmp_path / 'train.csv'}"
    typed = arguments(shape, tmp_path / "out", f"{options} --test_file {tmp_path / 'test.csv'} --do_predict")
    assert run_glue.main(typed) == 0
    lines = (tmp_path / "out/predict_results_custom.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 4


def test_a_task_of_several_evaluation_splits_takes_one_file_of_them(shape, tmp_path):
    (tmp_path / "rows.csv").write_text(PREMISES)
    options = f"--task_name mnli --train_file {tmp_path / 'rows.csv'}"
    for more in (f"--validation_file {tmp_path / 'rows.csv'}", "--hold_out 0.5"):
        assert run_glue.main(arguments(shape, tmp_path / more[2], f"{options} {more}")) == 0
        assert (tmp_path / more[2] / "eval_results_mnli.txt").exists()


# -- models -------------------------------------------------------------------------------------------------------

BYTES = dict(pre_tokenizer=pre_tokenizers.ByteLevel(), decoder=decoders.ByteLevel())
WORDS = dict(pre_tokenizer=pre_tokenizers.Whitespace(), decoder=decoders.WordPiece())
PIECES = dict(pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace())
BERT_LIKE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# By the name in the README: the config's class, changes of its shape, and how its tokenizer splits.
MODELS = {
    "bert-base-uncased": ("BertConfig", SMALL, "wordpiece"),
    "sentence-transformers/all-MiniLM-L6-v2": ("BertConfig", {**SMALL, "num_attention_heads": 4}, "wordpiece"),
    "distilbert-base-uncased": ("DistilBertConfig", dict(dim=16, n_layers=1, n_heads=2, hidden_dim=32), "wordpiece"),
    "roberta-base": ("RobertaConfig", SMALL, "bytes"),
    "google/electra-base-discriminator": ("ElectraConfig", {**SMALL, "embedding_size": 16}, "wordpiece"),
    "microsoft/deberta-v3-base": (
        "DebertaV2Config",
        {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        "unigram",
    ),
    "answerdotai/ModernBERT-base": ("ModernBertConfig", SMALL, "bytes"),
}


def make_tokenizer(kind: str):
    """A tokenizer that was trained on made-up sentences, split as that of the real model is."""
    parts, model, trainer = {
        "wordpiece": (WORDS, models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        "bytes": (BYTES, models.BPE(), trainers.BpeTrainer),
        "unigram": (PIECES, models.Unigram(), trainers.UnigramTrainer),
    }[kind]
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    unknown = {"unk_token": "[UNK]"} if kind == "unigram" else {}
    rules = trainer(vocab_size=120, special_tokens=BERT_LIKE, show_progress=False, **unknown)
    tokenizer.train_from_iterator(sentences(200, 0), rules)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT_LIKE, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)


def commands() -> list[list[str]]:
    lines = [line for line in README.splitlines() if line.startswith("python run_glue.py")]
    return [line.split()[2:] for line in lines]


def test_every_command_of_the_readme_is_understood_and_every_model_in_it_tried():
    named = set()
    for typed in commands():
        run = run_glue.read_options(typed)
        named |= {run.model.model_name_or_path} - {None}
    assert named == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_each_model_of_the_readme_trains_and_loads_again(name, tmp_path):
    """In its own shape and its own way to split words, but small."""
    kind, changes, splits = MODELS[name]
    tokenizer = make_tokenizer(splits)
    tokenizer.save_pretrained(tmp_path / "model")
    config = getattr(transformers, kind)(vocab_size=len(tokenizer), pad_token_id=0, **changes)
    config.architectures = [AutoModelForSequenceClassification.from_config(config).__class__.__name__]
    config.save_pretrained(tmp_path / "model")
    folder = write(tmp_path / "rows", "mrpc", "parquet", {"train": 16, "validation": 4})
    options = f"--task_name mrpc --dataset_name {folder} --pattern 2:4"
    assert run_glue.main(arguments(tmp_path / "model", tmp_path / "out", options, recipe="sr-ste")) == 0
    report = verify(tmp_path / "out", "2:4")
    assert report.ok and len(report.layers) >= 4
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


def test_a_decoder_without_padding_is_given_some(tmp_path):
    tokenizer = make_tokenizer("bytes")
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path / "model")
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    config.save_pretrained(tmp_path / "model")
    folder = write(tmp_path / "rows", "mrpc", "parquet", {"train": 16, "validation": 4})
    run_glue.main(arguments(tmp_path / "model", tmp_path / "out", f"--task_name mrpc --dataset_name {folder}"))
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_a_file_of_options_is_the_same_as_a_command_line(kind, tmp_path):
    options = {"model_name_or_path": "bert", "task_name": "rte", "pattern": "1:4", "recipe": "sr-ste", "do_eval": True}
    options |= {"settings": {"decay": 1e-4}, "learning_rate": 5e-5, "output_dir": str(tmp_path), "use_cpu": True}
    lines = [f"{key}: {str(value).lower() if value is True else value}\n" for key, value in options.items()]
    text = json.dumps(options) if kind == "json" else "".join(lines)
    (tmp_path / f"run.{kind}").write_text(text.replace("1e-05", "1e-5").replace("0.0001", "1e-4"))
    typed = "--model_name_or_path bert --task_name rte --pattern 1:4 --recipe sr-ste --do_eval --learning_rate 5e-5"
    own = ["--output_dir", str(tmp_path), "--use_cpu", "--settings", '{"decay": 1e-4}']
    assert run_glue.read_options([str(tmp_path / f"run.{kind}")]) == run_glue.read_options([*typed.split(), *own])


def test_a_file_with_an_unknown_option_names_it(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rte: 1\noutput_dir: out\n")
    with pytest.raises(SystemExit, match="learning_rte"):
        run_glue.main([str(tmp_path / "run.yaml")])
