"""The rows of `run_glue.py`: tasks of GLUE, files of your own, and how they become tokens and labels.

To train on rows of another form, change this file alone.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

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
    def task(self) -> str:
        """Return the name of the task, or "custom" for data of your own."""
        return self.task_name or "custom"

    @property
    def own_files(self) -> dict[str, str | None]:
        """Return the user's own files, by split."""
        return {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}

    @property
    def names_rows(self) -> bool:
        """Return whether the rows come from elsewhere than GLUE."""
        return self.dataset_name != GLUE or any(self.own_files.values())


def read_files(files: dict[str, list[str]]) -> datasets.DatasetDict:
    """Read files of one type. A split without labels has no column of them: `datasets` adds one that holds None."""
    endings = {Path(path).suffix for paths in files.values() for path in paths}
    if unknown := sorted(endings - set(READERS)):
        raise ValueError(f"Files end in {', '.join(unknown)}; they must be {', '.join(READERS)}.")
    readers = {READERS[ending] for ending in endings}
    if len(readers) != 1:
        raise ValueError(f"Files of one run must be of one type; got {', '.join(sorted(endings)) or 'none'}.")
    options = {"delimiter": "\t"} if endings == {".tsv"} else {}
    rows = datasets.load_dataset(readers.pop(), data_files=files, **options)
    for split, part in rows.items():
        if "label" in part.features and set(part["label"]) == {None}:
            rows[split] = part.remove_columns("label")
    return rows


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


def load_rows(data: DataOptions, **source: Any) -> datasets.DatasetDict:
    """Load the splits train, validation... and test..., as far as there are any; `source` goes to `load_dataset`."""
    if any(data.own_files.values()):
        rows = read_files({split: [path] for split, path in data.own_files.items() if path})
    elif Path(data.dataset_name).is_dir():
        rows = read_folder(Path(data.dataset_name), data.task)
    else:
        subset = data.task if data.dataset_name == GLUE else None
        rows = datasets.load_dataset(data.dataset_name, subset, **source)
    if data.hold_out:
        # The same rows for every seed of a run, so that all settings are compared on the same rows.
        parts = rows["train"].train_test_split(data.hold_out, seed=0)
        rows["train"] = parts["train"]
        for suffix in TASKS[data.task].splits if data.task in TASKS else ("",):
            rows[f"validation{suffix}"] = parts["test"]
    return rows


def task_of(data: DataOptions, rows: datasets.DatasetDict) -> Task:
    """Return the task; for data of your own it follows from the columns."""
    if data.task in TASKS:
        return TASKS[data.task]
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
    rows: datasets.DatasetDict, task: Task, tokenizer: PreTrainedTokenizerBase, data: DataOptions
) -> datasets.DatasetDict:
    """Return rows of token ids and of labels as numbers."""
    length = min(data.max_seq_length, tokenizer.model_max_length)
    padding = "max_length" if data.pad_to_max_length else False

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
