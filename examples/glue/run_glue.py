"""Fine-tune a Transformer to N:M sparsity on a GLUE task, or on data of your own.

    python run_glue.py --model_name_or_path bert-base-uncased --task_name rte --pattern 2:4 --recipe admm \
        --do_train --do_eval --output_dir out

It takes all options of `TrainingArguments` and of `NxMConfig`; `--help` lists them. `--task_name demo --output_dir out`
needs no network, no model and no data.
"""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import evaluate
import numpy as np
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from nxm_hf import NxMConfig, NxMTrainer
from nxm_hf.storage.checkpoints import newest_complete

logger = logging.getLogger("run_glue")
METRIC = str(Path(__file__).with_name("glue_metric.py"))
GLUE = "nyu-mll/glue"
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Task:
    """What there is to know of a task: its columns of text, its labels (none: a score), and its evaluation splits."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    best: str = "accuracy"
    splits: tuple[str, ...] = ("",)


TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), best="matthews_correlation"),
    "sst2": Task(("sentence",), ("negative", "positive")),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), best="f1"),
    "stsb": Task(("sentence1", "sentence2"), best="pearson"),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), best="f1"),
    "mnli": Task(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), splits=("_matched", "_mismatched")
    ),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": Task(("sentence1", "sentence2"), ("not_entailment", "entailment")),
    "demo": Task(("sentence1", "sentence2"), ("less", "more")),  # its rows are made by demo.py
}


@dataclass
class DataOptions:
    """What to train on."""

    task_name: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(TASKS)}; demo alone needs neither network nor data."}
    )
    dataset_name: str = field(
        default=GLUE,
        metadata={"help": "A Hub data set, or a directory of train, validation and test files (parquet, csv, jsonl)."},
    )
    train_file: str | None = field(default=None, metadata={"help": "Your own rows: csv, tsv, jsonl or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "Your own rows to evaluate."})
    test_file: str | None = field(default=None, metadata={"help": "Your own rows to predict."})
    hold_out: float = field(
        default=0.0,
        metadata={"help": "Evaluate on this fraction of the training rows, not trained on, in place of validation."},
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad to it, rather than to the longest of a batch."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Only the first so many."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Only the first so many."})

    @property
    def own_files(self) -> dict[str, str | None]:
        """The user's own files, by split."""
        return {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}

    @property
    def names_rows(self) -> bool:
        """Whether the rows are other ones than a task's own."""
        return self.dataset_name != GLUE or any(self.own_files.values())


@dataclass
class ModelOptions:
    """What to train."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A Hub model, or a directory."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "If it is not the model's own."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "For private models and data sets."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that a Hub model brings along."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights; --bf16 computes in less and keeps these."})
    from_scratch: bool = field(default=False, metadata={"help": "Random weights in the model's shape."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes of that shape, as JSON: '{\"intermediate_size\": 768}'."}
    )
    teacher: str | None = field(default=None, metadata={"help": "A dense model to learn from beside the labels."})
    distillation: str | None = field(
        default=None, metadata={"help": 'How, as JSON: \'{"temperature": 2.0, "weight": 0.5}\'.'}
    )


@dataclass
class Run:
    """All options of one run."""

    data: DataOptions
    model: ModelOptions
    sparsity: NxMConfig
    training: TrainingArguments

    @property
    def task(self) -> str:
        """The task, or "custom" for data of one's own."""
        return self.data.task_name or "custom"

    @property
    def is_demo(self) -> bool:
        """Whether this is the demo's show, rather than one training on its rows."""
        return self.task == "demo" and not self.data.names_rows


# -- data ---------------------------------------------------------------------------------------------------------


def read_files(files: dict[str, list[str]]) -> datasets.DatasetDict:
    """Files of one kind, by split."""
    kinds = {Path(path).suffix for paths in files.values() for path in paths}
    if unknown := sorted(kinds - set(READERS)):
        raise ValueError(f"Files end in {', '.join(unknown)}; they must be {', '.join(READERS)}.")
    readers = {READERS[kind] for kind in kinds}
    if len(readers) != 1:
        raise ValueError(f"Files of one run must be of one kind; got {', '.join(sorted(kinds)) or 'none'}.")
    more = {"delimiter": "\t"} if kinds == {".tsv"} else {}
    return datasets.load_dataset(readers.pop(), data_files=files, **more)


def read_folder(folder: Path, task: str) -> datasets.DatasetDict:
    """A directory of files named by split, such as `train.parquet` or `validation-00000-of-00001.parquet`."""
    folder = folder / task if (folder / task).is_dir() else folder
    files: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in READERS and "." not in path.stem:
            files.setdefault(path.stem.split("-")[0], []).append(str(path))
    if not files:
        raise ValueError(f"{folder} holds no train or validation file ({', '.join(READERS)}). Name another directory.")
    return read_files(files)


def load_rows(run: Run) -> datasets.DatasetDict:
    """The rows of a run by split: train, validation..., test..., as far as there are any."""
    data = run.data
    if any(data.own_files.values()):
        rows = read_files({split: [path] for split, path in data.own_files.items() if path})
    elif Path(data.dataset_name).is_dir():
        rows = read_folder(Path(data.dataset_name), run.task)
    else:
        name = run.task if data.dataset_name == GLUE else None
        rows = datasets.load_dataset(data.dataset_name, name, cache_dir=run.model.cache_dir, token=run.model.token)
    if data.hold_out:
        # The same rows for every seed of a run, so that settings chosen on them are chosen on the same ground.
        parts = rows["train"].train_test_split(data.hold_out, seed=0)
        rows["train"] = parts["train"]
        for suffix in splits_of(run):
            rows[f"validation{suffix}"] = parts["test"]
    return rows


def splits_of(run: Run) -> tuple[str, ...]:
    """What the names of the evaluation splits end in."""
    return TASKS[run.task].splits if run.task in TASKS else ("",)


def describe(run: Run, rows: datasets.DatasetDict) -> Task:
    """The task; of data of one's own, read off its columns."""
    if run.task in TASKS:
        return TASKS[run.task]
    features = next(iter(rows.values())).features
    texts = [name for name, kind in features.items() if name != "label" and kind.dtype in ("string", "large_string")]
    if not texts:
        raise ValueError(f"No column of text among {', '.join(features)}; one or two are needed beside 'label'.")
    return Task(tuple(texts[:2]), label_names(rows))


def label_names(rows: datasets.DatasetDict) -> tuple[str, ...]:
    """The labels of data of one's own; none where they are numbers with a fraction, which are scores."""
    split = next((split for split in rows.values() if "label" in split.features), None)
    if split is None:
        raise ValueError("No split has a column 'label'; rename the one that holds the labels.")
    kind = split.features["label"]
    if isinstance(kind, datasets.ClassLabel):
        return tuple(kind.names)
    if kind.dtype.startswith("float"):
        return ()
    return tuple(map(str, sorted(set(split["label"]))))


def label_number(label, task: Task) -> float:
    """The number of a label, which stands in the rows by name or as that number; a score as it is."""
    if not task.labels and label is not None:
        return float(label)
    if str(label) in task.labels:
        return task.labels.index(str(label))
    if label not in range(len(task.labels)):
        known = f"{', '.join(task.labels)}, or 0 to {len(task.labels) - 1}" if task.labels else "a number"
        raise ValueError(f"A row has the label {label!r}; this task's are {known}. Correct it, or leave the row out.")
    return int(label)


def tokenize(rows: datasets.DatasetDict, task: Task, tokenizer, run: Run) -> datasets.DatasetDict:
    """Rows of token ids and of labels as numbers; hidden labels, which GLUE writes as -1, are left out."""
    length = min(run.data.max_seq_length, tokenizer.model_max_length)
    padding = "max_length" if run.data.pad_to_max_length else False

    def encode(batch: dict[str, list]) -> dict[str, list]:
        encoded = dict(
            tokenizer(*(batch[text] for text in task.texts), truncation=True, max_length=length, padding=padding)
        )
        if "label" in batch and -1 not in batch["label"]:
            encoded["labels"] = [label_number(label, task) for label in batch["label"]]
        return encoded

    return datasets.DatasetDict(
        {
            split: part.map(encode, batched=True, remove_columns=part.column_names, desc=f"Tokenizing {split}")
            for split, part in rows.items()
        }
    )


# -- model --------------------------------------------------------------------------------------------------------


def load_tokenizer(run: Run):
    """The model's tokenizer; one without padding, as decoders have, pads with its end of text."""
    options = run.model
    tokenizer = AutoTokenizer.from_pretrained(
        options.tokenizer_name or options.model_name_or_path,
        revision=options.revision,
        token=options.token,
        cache_dir=options.cache_dir,
        trust_remote_code=options.trust_remote_code,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(run: Run, task: Task, tokenizer):
    """The model with a head for this task."""
    options = run.model
    where = {
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
        "trust_remote_code": options.trust_remote_code,
    }
    labels = task.labels or ("score",)
    config = AutoConfig.from_pretrained(
        options.model_name_or_path,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **where,
        **json.loads(options.config_overrides or "{}"),
    )
    if config.get_text_config().pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if options.from_scratch:
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=options.trust_remote_code)
    return AutoModelForSequenceClassification.from_pretrained(
        options.model_name_or_path, config=config, dtype=options.dtype, ignore_mismatched_sizes=True, **where
    )


# -- running ------------------------------------------------------------------------------------------------------


def predicted(predictions, task: Task) -> np.ndarray:
    """What a model's outputs say: labels, or scores."""
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    return logits.argmax(-1) if task.labels else logits.squeeze(-1)


def make_metrics(run: Run, task: Task) -> Callable:
    """`compute_metrics` of a Trainer, by the `evaluate` module beside this file."""
    kind = "classification" if task.labels else "regression"
    metric = evaluate.load(METRIC, run.task if run.task in TASKS else kind)

    def compute(prediction) -> dict[str, float]:
        return metric.compute(predictions=predicted(prediction.predictions, task), references=prediction.label_ids)

    return compute


def make_trainer(run: Run) -> tuple[NxMTrainer, Task, datasets.DatasetDict]:
    """The trainer of a run, with its task and its rows."""
    set_seed(run.training.seed)
    rows = load_rows(run)
    task = describe(run, rows)
    tokenizer = load_tokenizer(run)
    with run.training.main_process_first(desc="tokenizing"):
        rows = tokenize(rows, task, tokenizer, run)
    model = load_model(run, task, tokenizer)
    trainer = NxMTrainer(
        model=model,
        args=run.training,
        train_dataset=first(rows, "train", run.data.max_train_samples) if run.training.do_train else None,
        eval_dataset=evaluation_rows(run, rows),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if run.training.fp16 else None),
        compute_metrics=make_metrics(run, task),
        sparsity=run.sparsity,
        teacher=run.model.teacher,
        distillation=json.loads(run.model.distillation) if run.model.distillation else None,
    )
    return trainer, task, rows


def first(rows: datasets.DatasetDict, split: str, most: int | None) -> datasets.Dataset:
    """The first rows of a split."""
    if split not in rows:
        raise ValueError(
            f"There are no rows {split!r}, only {', '.join(rows)}. Name a file of them, or leave them out."
        )
    return rows[split] if most is None else rows[split].select(range(min(most, len(rows[split]))))


def evaluation_rows(run: Run, rows: datasets.DatasetDict) -> datasets.Dataset | None:
    """What is evaluated during training: the first evaluation split."""
    wanted = run.training.do_eval or run.training.eval_strategy != "no"
    return first(rows, f"validation{splits_of(run)[0]}", run.data.max_eval_samples) if wanted else None


def checkpoint_to_resume(run: Run) -> str | None:
    """The checkpoint that was asked for, or else the newest whole one in the output directory."""
    if run.training.resume_from_checkpoint or not list(Path(run.training.output_dir).glob("checkpoint-*")):
        return run.training.resume_from_checkpoint
    try:
        found = newest_complete(run.training.output_dir)
    except ValueError as error:
        logger.warning("Training from the start: %s", error)
        return None
    logger.warning("Going on from %s; give another --output_dir to train from the start.", found)
    return found


def train(run: Run, trainer: NxMTrainer) -> None:
    """Train, save the model that would be shipped, and record how it went."""
    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(run))
    metrics = {**result.metrics, "train_samples": len(trainer.train_dataset)}
    trainer.save_model()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()


def evaluate_splits(run: Run, trainer: NxMTrainer, task: Task, rows: datasets.DatasetDict) -> dict[str, float]:
    """Metrics of every evaluation split; what was predicted for its rows is written to a file."""
    metrics = {}
    for suffix in splits_of(run):
        split = first(rows, f"validation{suffix}", run.data.max_eval_samples)
        prefix = f"eval{suffix}" if suffix != splits_of(run)[0] else "eval"
        output = predict_in_order(trainer, split, metric_key_prefix=prefix)
        write_predictions(trainer, f"eval_results_{run.task}{suffix}.txt", task, output)
        metrics |= {**output.metrics, f"{prefix}_samples": len(split)}
    trainer.log({name: value for name, value in metrics.items() if not name.endswith("_samples")})
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


def predict_splits(run: Run, trainer: NxMTrainer, task: Task, rows: datasets.DatasetDict) -> None:
    """What the model says of the rows of every test split, in files."""
    for suffix in splits_of(run):
        split = first(rows, f"test{suffix}", run.data.max_predict_samples)
        unlabelled = split.remove_columns("labels") if "labels" in split.column_names else split
        output = predict_in_order(trainer, unlabelled)
        write_predictions(trainer, f"predict_results_{run.task}{suffix}.txt", task, output)


def predict_in_order(trainer: NxMTrainer, rows: datasets.Dataset, **words):
    """Predictions in the order of the rows, which a Trainer mixes where it groups those of training by length."""
    asked, trainer.args.train_sampling_strategy = trainer.args.train_sampling_strategy, "random"  # of training alone
    try:
        return trainer.predict(rows, **words)
    finally:
        trainer.args.train_sampling_strategy = asked


def write_predictions(trainer: NxMTrainer, name: str, task: Task, output) -> None:
    """A row for each prediction: its number, what it is, and, where they are known, the label."""
    if not trainer.is_world_process_zero():
        return
    said = predicted(output.predictions, task).tolist()
    columns = [said] if output.label_ids is None else [said, output.label_ids.tolist()]
    names = (lambda value: task.labels[value]) if task.labels else "{:.3f}".format
    lines = ["\t".join(["index", "prediction", "label"][: len(columns) + 1])]
    lines += ["\t".join([str(i), *map(names, row)]) for i, row in enumerate(zip(*columns, strict=True))]
    Path(trainer.args.output_dir, name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def work(run: Run) -> dict[str, float]:
    """All that was asked for of one run; its evaluation."""
    trainer, task, rows = make_trainer(run)
    metrics = {}
    if run.training.do_train:
        train(run, trainer)
    if run.training.do_eval:
        metrics = evaluate_splits(run, trainer, task, rows)
    if run.training.do_predict:
        predict_splits(run, trainer, task, rows)
    card = {"finetuned_from": run.model.model_name_or_path, "tasks": "text-classification"}
    if run.training.push_to_hub:
        trainer.push_to_hub(**card)
    elif run.training.do_train:
        trainer.create_model_card(**card)
    return metrics


def read_options(words: list[str]) -> Run:
    """The options of a command line; ValueError for those that make no sense together."""
    parser = HfArgumentParser((DataOptions, ModelOptions, NxMConfig, TrainingArguments))
    data, model, sparsity, training = parser.parse_args_into_dataclasses(words)
    run = Run(data, model, sparsity, training)
    if run.is_demo:
        return run
    if data.task_name is None and not data.names_rows:
        raise ValueError("Nothing says what to train on; add --task_name mrpc, or --train_file rows.csv.")
    if data.task_name is not None and data.task_name not in TASKS:
        raise ValueError(f"There is no task {data.task_name!r}; --task_name is one of {', '.join(TASKS)}.")
    if model.model_name_or_path is None:
        raise ValueError("Nothing says which model; add --model_name_or_path bert-base-uncased.")
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ValueError("Nothing to do; add --do_train, --do_eval or --do_predict.")
    if not 0 <= data.hold_out < 1:
        raise ValueError(f"--hold_out is a fraction of the training rows, 0 to below 1; got {data.hold_out}.")
    return run


def main(words: list[str] | None = None) -> int:
    try:
        run = read_options(sys.argv[1:] if words is None else words)
    except ValueError as error:
        raise SystemExit(f"run_glue.py: {error}") from None
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.set_verbosity(run.training.get_process_log_level())
    if run.is_demo:
        import demo

        return demo.show(run)
    work(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
