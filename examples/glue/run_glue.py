"""Fine-tune a Transformer to N:M sparsity on a GLUE task, or on data of your own.

    python run_glue.py --model_name_or_path bert-base-uncased --task_name rte --pattern 2:4 --recipe admm \
        --do_train --do_eval --output_dir out

It takes all options of `TrainingArguments` and of `NxMConfig`; `--help` lists them. With `--task_name demo --output_dir
out` it needs no network, no model and no data.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import evaluate
import numpy as np
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput

from nxm_hf import NxMConfig, NxMTrainer
from nxm_hf.config.hub import CONFIG_SUFFIXES, read_config_file
from nxm_hf.storage.checkpoints import newest_complete

logger = logging.getLogger("run_glue")
METRIC = str(Path(__file__).with_name("glue_metric.py"))
GLUE = "nyu-mll/glue"
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Task:
    """A task: its columns of text, its labels, its main metric, and its evaluation splits."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()  # none: the task is to predict a score
    best: str = "accuracy"
    splits: tuple[str, ...] = ("",)  # endings of their names


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
    "demo": Task(("sentence1", "sentence2"), ("less", "more")),  # demo.py makes its rows
}


@dataclass
class DataOptions:
    """Options of the data."""

    task_name: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(TASKS)}; demo needs neither network nor data."}
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
        metadata={"help": "Do not train on this fraction of the training rows; evaluate on it instead of validation."},
    )
    max_seq_length: int = field(default=128, metadata={"help": "Cut texts to this many tokens."})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad all texts to max_seq_length, rather than to the longest of a batch."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on only the first rows, this many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate only the first rows, this many."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict only the first rows, this many."})

    @property
    def own_files(self) -> dict[str, str | None]:
        """Return the user's own files, by split."""
        return {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}

    @property
    def names_rows(self) -> bool:
        """Return whether the rows come from elsewhere than GLUE."""
        return self.dataset_name != GLUE or any(self.own_files.values())


@dataclass
class ModelOptions:
    """Options of the model."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A Hub model, or a directory."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "A tokenizer that is not the model's own."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "Access token for private models and data sets."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for downloads."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a Hub model."})
    dtype: str = field(default="float32", metadata={"help": "Type of the weights; --bf16 does not change it."})
    from_scratch: bool = field(default=False, metadata={"help": "Start from random weights in the model's shape."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes of the shape, as JSON: '{\"intermediate_size\": 768}'."}
    )
    teacher: str | None = field(default=None, metadata={"help": "A dense model to learn from, beside the labels."})
    distillation: str | None = field(
        default=None, metadata={"help": 'How to learn from it, as JSON: \'{"temperature": 2.0, "weight": 0.5}\'.'}
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
        """Return the name of the task, or "custom" for data of your own."""
        return self.data.task_name or "custom"

    @property
    def output_dir(self) -> Path:
        """Return where the run writes to."""
        return Path(self.training.output_dir or ".")

    @property
    def is_demo(self) -> bool:
        """Return whether to run the whole demo, rather than one training on its rows."""
        return self.task == "demo" and not self.data.names_rows


# -- data ---------------------------------------------------------------------------------------------------------


def read_files(files: dict[str, list[str]]) -> datasets.DatasetDict:
    """Read files of one type."""
    endings = {Path(path).suffix for paths in files.values() for path in paths}
    if unknown := sorted(endings - set(READERS)):
        raise ValueError(f"Files end in {', '.join(unknown)}; they must be {', '.join(READERS)}.")
    readers = {READERS[ending] for ending in endings}
    if len(readers) != 1:
        raise ValueError(f"Files of one run must be of one type; got {', '.join(sorted(endings)) or 'none'}.")
    options = {"delimiter": "\t"} if endings == {".tsv"} else {}
    return datasets.load_dataset(readers.pop(), data_files=files, **options)


def read_folder(folder: Path, task: str) -> datasets.DatasetDict:
    """Read a directory of files named by split, such as `train.parquet` or `validation-00000-of-00001.parquet`."""
    folder = folder / task if (folder / task).is_dir() else folder
    files: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in READERS and "." not in path.stem:
            files.setdefault(path.stem.split("-")[0], []).append(str(path))
    if not files:
        raise ValueError(f"{folder} holds no train or validation file ({', '.join(READERS)}). Name another directory.")
    return read_files(files)


def load_rows(run: Run) -> datasets.DatasetDict:
    """Load the rows of a run: the splits train, validation... and test..., as far as there are any."""
    data = run.data
    if any(data.own_files.values()):
        rows = read_files({split: [path] for split, path in data.own_files.items() if path})
    elif Path(data.dataset_name).is_dir():
        rows = read_folder(Path(data.dataset_name), run.task)
    else:
        subset = run.task if data.dataset_name == GLUE else None
        rows = datasets.load_dataset(data.dataset_name, subset, cache_dir=run.model.cache_dir, token=run.model.token)
    if data.hold_out:
        # The same rows for every seed of a run, so that all settings are compared on the same rows.
        parts = rows["train"].train_test_split(data.hold_out, seed=0)
        rows["train"] = parts["train"]
        for suffix in split_suffixes(run):
            rows[f"validation{suffix}"] = parts["test"]
    return rows


def split_suffixes(run: Run) -> tuple[str, ...]:
    """Return the endings in the names of the evaluation splits: two for MNLI, an empty one for others."""
    return TASKS[run.task].splits if run.task in TASKS else ("",)


def task_of(run: Run, rows: datasets.DatasetDict) -> Task:
    """Return the task of a run; for data of your own it follows from the columns."""
    if run.task in TASKS:
        return TASKS[run.task]
    features = next(iter(rows.values())).features
    texts = [
        name for name, feature in features.items() if name != "label" and feature.dtype in ("string", "large_string")
    ]
    if not texts:
        raise ValueError(f"No column of text among {', '.join(features)}; one or two are needed beside 'label'.")
    return Task(tuple(texts[:2]), label_names(rows))


def label_names(rows: datasets.DatasetDict) -> tuple[str, ...]:
    """Return the labels of data of your own."""
    split = next((split for split in rows.values() if "label" in split.features), None)
    if split is None:
        raise ValueError("No split has a column 'label'; rename the one that holds the labels.")
    feature = split.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if feature.dtype.startswith("float"):
        return ()
    return tuple(map(str, sorted(set(split["label"]))))


def label_number(label: Any, task: Task) -> float:
    """Return the number of a label, or a score as it is."""
    if not task.labels and label is not None:
        return float(label)
    if str(label) in task.labels:
        return task.labels.index(str(label))
    if label not in range(len(task.labels)):
        known = f"{', '.join(task.labels)}, or 0 to {len(task.labels) - 1}" if task.labels else "a number"
        raise ValueError(f"A row has the label {label!r}; this task's are {known}. Correct it, or leave the row out.")
    return int(label)


def tokenize(
    rows: datasets.DatasetDict, task: Task, tokenizer: PreTrainedTokenizerBase, run: Run
) -> datasets.DatasetDict:
    """Return rows of token ids and of labels as numbers."""
    length = min(run.data.max_seq_length, tokenizer.model_max_length)
    padding = "max_length" if run.data.pad_to_max_length else False

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = [batch[text] for text in task.texts]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=length, padding=padding))
        if "label" in batch and -1 not in batch["label"]:
            encoded["labels"] = [label_number(label, task) for label in batch["label"]]
        return encoded

    return datasets.DatasetDict(
        {
            split: part.map(encode, batched=True, remove_columns=part.column_names, desc=f"Tokenizing {split}")
            for split, part in rows.items()
        }
    )


def select(rows: datasets.DatasetDict, split: str, most: int | None) -> datasets.Dataset:
    """Return the first rows of a split."""
    if split not in rows:
        raise ValueError(
            f"There are no rows {split!r}, only {', '.join(rows)}. Name a file of them, or leave them out."
        )
    return rows[split] if most is None else rows[split].select(range(min(most, len(rows[split]))))


def evaluation_rows(run: Run, rows: datasets.DatasetDict) -> datasets.Dataset | None:
    """Return the rows to evaluate during training: those of the first evaluation split, or None."""
    if not run.training.do_eval and run.training.eval_strategy == "no":
        return None
    return select(rows, f"validation{split_suffixes(run)[0]}", run.data.max_eval_samples)


# -- model --------------------------------------------------------------------------------------------------------


def load_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token, as decoders have, pads with its end of text."""
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


def load_model(run: Run, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the model with a head for a task."""
    options = run.model
    assert options.model_name_or_path is not None  # `read_options` has checked it
    source = {
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
        **source,
        **json.loads(options.config_overrides or "{}"),
    )
    if config.get_text_config().pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if options.from_scratch:
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=options.trust_remote_code)
    return AutoModelForSequenceClassification.from_pretrained(
        options.model_name_or_path, config=config, dtype=options.dtype, ignore_mismatched_sizes=True, **source
    )


def make_trainer(run: Run) -> tuple[NxMTrainer, Task, datasets.DatasetDict]:
    """Return the trainer of a run, with its task and its tokenized rows."""
    set_seed(run.training.seed)
    rows = load_rows(run)
    task = task_of(run, rows)
    tokenizer = load_tokenizer(run)
    with run.training.main_process_first(desc="tokenizing"):
        rows = tokenize(rows, task, tokenizer, run)
    model = load_model(run, task, tokenizer)
    trainer = NxMTrainer(
        model=model,
        args=run.training,
        train_dataset=select(rows, "train", run.data.max_train_samples) if run.training.do_train else None,
        eval_dataset=evaluation_rows(run, rows),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if run.training.fp16 else None),
        compute_metrics=make_metrics(run, task),
        sparsity=run.sparsity,
        teacher=run.model.teacher,
        distillation=json.loads(run.model.distillation) if run.model.distillation else None,
    )
    return trainer, task, rows


# -- training -----------------------------------------------------------------------------------------------------


def checkpoint_to_resume(run: Run) -> str | None:
    """Return the checkpoint that was named, or else the newest complete one in the output directory."""
    if run.training.resume_from_checkpoint or not list(run.output_dir.glob("checkpoint-*")):
        return run.training.resume_from_checkpoint
    try:
        checkpoint = newest_complete(run.output_dir)
    except ValueError as error:
        logger.warning("Training from the start: %s", error)
        return None
    logger.warning("Resuming from %s; give another --output_dir to train from the start.", checkpoint)
    return checkpoint


def train(run: Run, trainer: NxMTrainer) -> None:
    """Train, save the sparse model, and write the metrics of the training."""
    rows = cast(datasets.Dataset, trainer.train_dataset)
    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(run))
    metrics = {**result.metrics, "train_samples": len(rows)}
    trainer.save_model()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()


# -- evaluation ---------------------------------------------------------------------------------------------------


def decode(outputs: Any, task: Task) -> np.ndarray:
    """Return the labels or scores that a model predicts."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.argmax(-1) if task.labels else logits.squeeze(-1)


def make_metrics(run: Run, task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the function `compute_metrics` of a Trainer, by the `evaluate` module beside this file."""
    default = "classification" if task.labels else "regression"
    metric = evaluate.load(METRIC, run.task if run.task in TASKS else default)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=decode(prediction.predictions, task), references=prediction.label_ids)

    return compute


def evaluate_splits(run: Run, trainer: NxMTrainer, task: Task, rows: datasets.DatasetDict) -> dict[str, float]:
    """Evaluate every evaluation split, and write the predictions of each to a file."""
    metrics: dict[str, float] = {}
    suffixes = split_suffixes(run)
    for suffix in suffixes:
        split = select(rows, f"validation{suffix}", run.data.max_eval_samples)
        prefix = "eval" if suffix == suffixes[0] else f"eval{suffix}"
        output = predict_in_order(trainer, split, prefix)
        write_predictions(trainer, f"eval_results_{run.task}{suffix}.txt", task, output)
        metrics |= {**(output.metrics or {}), f"{prefix}_samples": len(split)}
    trainer.log({name: value for name, value in metrics.items() if not name.endswith("_samples")})
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


def predict_splits(run: Run, trainer: NxMTrainer, task: Task, rows: datasets.DatasetDict) -> None:
    """Write the predictions for every test split to a file."""
    for suffix in split_suffixes(run):
        split = select(rows, f"test{suffix}", run.data.max_predict_samples)
        unlabelled = split.remove_columns("labels") if "labels" in split.column_names else split
        output = predict_in_order(trainer, unlabelled, "test")
        write_predictions(trainer, f"predict_results_{run.task}{suffix}.txt", task, output)


def predict_in_order(trainer: NxMTrainer, rows: datasets.Dataset, prefix: str) -> PredictionOutput:
    """Return predictions in the order of the rows.

    A Trainer that groups training rows by length changes the order of these rows as well.
    """
    strategy, trainer.args.train_sampling_strategy = trainer.args.train_sampling_strategy, "random"
    try:
        return trainer.predict(rows, metric_key_prefix=prefix)
    finally:
        trainer.args.train_sampling_strategy = strategy


def write_predictions(trainer: NxMTrainer, name: str, task: Task, output: PredictionOutput) -> None:
    """Write a line for each prediction: its number, the prediction, and the label if it is known."""
    if not trainer.is_world_process_zero():
        return
    columns = [decode(output.predictions, task).tolist()]
    if output.label_ids is not None:
        columns.append(np.asarray(output.label_ids).tolist())
    format_value = (lambda value: task.labels[value]) if task.labels else "{:.3f}".format
    lines = ["\t".join(["index", "prediction", "label"][: len(columns) + 1])]
    lines += ["\t".join([str(i), *map(format_value, row)]) for i, row in enumerate(zip(*columns, strict=True))]
    Path(trainer.args.output_dir or ".", name).write_text("\n".join(lines) + "\n", encoding="utf-8")


# -- command line -------------------------------------------------------------------------------------------------


def execute(run: Run) -> dict[str, float]:
    """Train, evaluate and predict, as the options of a run say."""
    trainer, task, rows = make_trainer(run)
    metrics = {}
    if run.training.do_train:
        train(run, trainer)
    if run.training.do_eval:
        metrics = evaluate_splits(run, trainer, task, rows)
    if run.training.do_predict:
        predict_splits(run, trainer, task, rows)
    card: dict[str, Any] = {"finetuned_from": run.model.model_name_or_path, "tasks": "text-classification"}
    if run.training.push_to_hub:
        trainer.push_to_hub(**card)
    elif run.training.do_train:
        trainer.create_model_card(**card)
    return metrics


def read_options(arguments: Sequence[str]) -> Run:
    """Return the options of a command line, or of the JSON or YAML file that is its only word."""
    options: Any = (DataOptions, ModelOptions, NxMConfig, TrainingArguments)
    parser = HfArgumentParser(options)
    if len(arguments) == 1 and arguments[0].endswith(CONFIG_SUFFIXES):
        data, model, sparsity, training = parser.parse_dict(read_config_file(Path(arguments[0])))
    else:
        data, model, sparsity, training = parser.parse_args_into_dataclasses(arguments)
    run = Run(data, model, sparsity, training)
    if run.is_demo:
        return run
    if data.task_name is None and not data.names_rows:
        raise ValueError("No data to train on; add --task_name mrpc, or --train_file rows.csv.")
    if data.task_name is not None and data.task_name not in TASKS:
        raise ValueError(f"There is no task {data.task_name!r}; --task_name is one of {', '.join(TASKS)}.")
    if model.model_name_or_path is None:
        raise ValueError("No model is named; add --model_name_or_path bert-base-uncased.")
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ValueError("Nothing to do; add --do_train, --do_eval or --do_predict.")
    if not 0 <= data.hold_out < 1:
        raise ValueError(f"--hold_out is a fraction of the training rows, 0 to below 1; got {data.hold_out}.")
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    try:
        run = read_options(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        raise SystemExit(f"run_glue.py: {error}") from None
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers.utils.logging.set_verbosity(run.training.get_process_log_level())
    if run.is_demo:
        import demo

        return demo.run_demo(run)
    execute(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
