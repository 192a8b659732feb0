"""The rows of `run_glue.py`: tasks of GLUE, files of your own, and how they become tokens and labels.

To train on rows of another form, change this file alone.
"""

import logging
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("run_glue")
GLUE = "nyu-mll/glue"
TWICE = re.compile(r"(.+)\.\d+")  # pandas reads a second column "label" as "label.1"
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


class DataError(ValueError):
    """Rows that cannot be trained on. The message says why, and what to change."""


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
    def splits(self) -> tuple[str, ...]:
        """Return the endings of the names of the evaluation splits. Own files are one split each."""
        return ("",) if self.task not in TASKS or any(self.own_files.values()) else TASKS[self.task].splits

    def source(self, split: str) -> str:
        """Return where the rows of a split come from, for an error."""
        return self.own_files.get(split) or f"The part {split!r} of {self.dataset_name}"

    @property
    def names_rows(self) -> bool:
        """Return whether the rows come from elsewhere than GLUE."""
        return self.dataset_name != GLUE or any(self.own_files.values())


def read_files(files: dict[str, list[str]]) -> datasets.DatasetDict:
    """Read files of one type. A column 'label' with nothing in it is left out."""
    paths = list(dict.fromkeys(path for of_split in files.values() for path in of_split))
    endings = {Path(path).suffix for path in paths}
    if absent := [path for path in paths if not Path(path).is_file()]:
        raise DataError(f"There is no file {', '.join(absent)}. Name a file of rows.")
    if unknown := sorted(endings - set(READERS)):
        raise DataError(f"Files end in {', '.join(unknown)}; they must be {', '.join(READERS)}.")
    readers = {READERS[ending] for ending in endings}
    if len(readers) != 1:
        raise DataError(f"Files of one run must be of one type; got {', '.join(sorted(endings)) or 'none'}.")
    if empty := [path for path in paths if not Path(path).stat().st_size]:
        raise DataError(f"{', '.join(empty)} is empty. Name a file of rows.")
    options = {"delimiter": "\t"} if endings == {".tsv"} else {}
    reader = readers.pop()
    # Each split on its own: rows to predict may have other columns than those to train on.
    return datasets.DatasetDict({split: read_split(reader, split, files[split], options) for split in files})


def read_split(reader: str, split: str, paths: list[str], options: dict[str, str]) -> datasets.Dataset:
    """Read the files of one split."""
    try:
        part = datasets.load_dataset(reader, data_files={split: paths}, split=split, **options)
    except Exception as error:  # of the reader, of pandas, of pyarrow
        causes: list[BaseException] = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
        reason = next((str(each).strip().split("\n")[0] for each in reversed(causes) if str(each)), "no data")
        if "no data" in reason or "BatchSize" in reason:  # of a csv file, of a parquet file
            raise DataError(f"{', '.join(paths)} has no rows. Name a file of rows.") from error
        raise DataError(
            f"{', '.join(paths)} cannot be read: {reason.rstrip('.')}. Write it anew as {reader}, in UTF-8, with the "
            "same columns in every row."
        ) from error
    numbered = {match[1] for name in part.features if (match := TWICE.fullmatch(name))}
    if reader == "csv" and (twice := sorted(numbered & set(part.features))):
        raise DataError(f"{', '.join(paths)} has the column {twice[0]!r} twice. Rename or remove one.")
    has_none = "label" in part.features and all(label is None for label in part["label"])
    return part.remove_columns("label") if has_none else part


def read_folder(folder: Path, task: str) -> datasets.DatasetDict:
    """Read a directory of files named by split, such as `train.parquet` or `validation-00000-of-00001.parquet`."""
    folder = folder / task if (folder / task).is_dir() else folder
    files: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in READERS and "." not in path.stem:
            files.setdefault(path.stem.split("-")[0], []).append(str(path))
    if not files:
        raise DataError(f"{folder} holds no train or validation file ({', '.join(READERS)}). Name another directory.")
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
        parts = select(rows, "train", None).train_test_split(data.hold_out, seed=0)
        rows["train"] = parts["train"]
        for suffix in data.splits:
            rows[f"validation{suffix}"] = parts["test"]
    return rows


def task_of(data: DataOptions, rows: datasets.DatasetDict) -> Task:
    """Return the task; for data of your own it follows from the columns."""
    if data.task in TASKS:
        task = replace(TASKS[data.task], splits=data.splits)
    else:
        split, part = next(iter(rows.items()))
        texts = [name for name in part.features if name != "label" and is_text(part.features[name])]
        if not texts:
            raise DataError(f"{data.source(split)} has no column of text, only {columns(part)}. Add one or two.")
        labelled = next((each for each, part in rows.items() if "label" in part.features), None)
        if labelled is None:
            raise DataError(without_labels(data, split, part))
        check_labels(data, labelled, rows[labelled])
        if len(texts) > 1:
            rest = f"; {', '.join(texts[2:])} is not read" if texts[2:] else ""
            logger.warning("The input is the text of %s and %s%s.", texts[0], texts[1], rest)
        task = Task(tuple(texts[:2]), label_names(rows[labelled]))
    for split, part in rows.items():
        check_columns(data, task, split, part)
    return task


def check_columns(data: DataOptions, task: Task, split: str, part: datasets.Dataset) -> None:
    """Raise unless rows have the columns of a task. Labels of rows to predict are not needed."""
    missing = [name for name in task.texts if name not in part.features or not is_text(part.features[name])]
    if missing:
        change = "leave out --task_name" if data.task in TASKS else "use the same columns in all files"
        raise DataError(
            f"{data.source(split)} has no column of text {' and none '.join(map(repr, missing))}, only "
            f"{columns(part)}. Rename the columns, or {change}."
        )
    for name in task.texts:
        check_filled(data, split, part, name)
    if not split.startswith("test"):
        if "label" not in part.features:
            raise DataError(without_labels(data, split, part))
        check_labels(data, split, part)


def check_labels(data: DataOptions, split: str, part: datasets.Dataset) -> None:
    """Raise unless each row has one number or name as its label."""
    if not isinstance(part.features["label"], datasets.Value | datasets.ClassLabel):
        raise DataError(
            f"{data.source(split)} has labels such as {part[0]['label']!r}, which are not all numbers or all names. "
            "Write one number or one name in each row."
        )
    check_filled(data, split, part, "label")


def check_filled(data: DataOptions, split: str, part: datasets.Dataset, name: str) -> None:
    """Raise if a row has nothing in a column. The rows of GLUE may have empty texts."""
    blanks = (None,) if data.task in TASKS and name != "label" else (None, "")
    values = (value.strip() if isinstance(value, str) else value for value in part[name])
    if (row := next((number for number, value in enumerate(values, 1) if value in blanks), None)) is not None:
        what = "label" if name == "label" else "text"
        raise DataError(
            f"{data.source(split)} has no {what} in row {row}, column {name!r}. Leave the row out. In csv files an "
            f"empty field is no {what}, nor is a word such as NA or None."
        )


def is_text(feature: Any) -> bool:
    """Return True if a column holds text."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def columns(part: datasets.Dataset) -> str:
    """Return the columns of rows with their types, for an error."""
    types = {name: "text" if is_text(each) else getattr(each, "dtype", "list") for name, each in part.features.items()}
    listed = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    return listed if len(types) > 1 else f"{listed}; a .csv has commas between columns, and a .tsv has tabs"


def without_labels(data: DataOptions, split: str, part: datasets.Dataset) -> str:
    """Return the error for rows without labels."""
    return (
        f"{data.source(split)} has no column 'label' with labels, only {columns(part)}. Rename the column of labels to "
        "label; rows without labels go into --test_file."
    )


def label_names(part: datasets.Dataset) -> tuple[str, ...]:
    """Return the labels of data of your own; none if they are scores."""
    feature = part.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    values = set(part["label"]) - {None}  # a row without a label is an error later
    if len(values) == 1:
        raise DataError(f"All rows have the label {values.pop()!r}; it takes two to learn from. Add other rows.")
    if feature.dtype.startswith("float"):
        if all(value.is_integer() for value in values):
            logger.warning("The labels are numbers such as 1.0, so they are scores to predict. Write 1 for a class.")
        return ()
    if len(values) == len(part) > 10:
        raise DataError(
            f"Each of the {len(part)} rows has a label of its own, such as {min(values)!r}. Write names that several "
            "rows share, or scores with a fraction such as 3.0."
        )
    spellings: dict[str, Any] = {}
    for value in sorted(values):
        if (other := spellings.setdefault(str(value).strip().casefold(), value)) != value:
            raise DataError(f"The labels {other!r} and {value!r} differ in case or spaces only. Write both in one way.")
    return tuple(map(str, sorted(values)))


def label_number(label: Any, task: Task) -> float:
    """Return the number of a label, or a score as it is."""
    if not task.labels and label is not None:
        try:
            if math.isfinite(score := float(label)):
                return score
        except (TypeError, ValueError):
            pass
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if str(label) in task.labels:
        return task.labels.index(str(label))
    if label not in range(len(task.labels)):
        known = f"{', '.join(task.labels)}, or 0 to {len(task.labels) - 1}" if task.labels else "a number"
        raise DataError(f"A row has the label {label!r}; this task's are {known}. Correct it, or leave the row out.")
    return int(label)


def tokenize(
    rows: datasets.DatasetDict, task: Task, tokenizer: PreTrainedTokenizerBase, data: DataOptions
) -> datasets.DatasetDict:
    """Return rows of token ids and of labels as numbers."""
    length = min(data.max_seq_length, tokenizer.model_max_length)
    padding = "max_length" if data.pad_to_max_length else False

    def encode(batch: dict[str, list], is_labelled: bool) -> dict[str, list]:
        texts = [batch[text] for text in task.texts]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=length, padding=padding))
        if is_labelled:
            encoded["labels"] = [label_number(label, task) for label in batch["label"]]
        return encoded

    return datasets.DatasetDict(
        {
            split: part.map(
                encode,
                batched=True,
                remove_columns=part.column_names,
                fn_kwargs={"is_labelled": not split.startswith("test")},  # GLUE's labels of them are all -1
                desc=f"Tokenizing {split}",
            )
            for split, part in rows.items()
        }
    )


def select(rows: datasets.DatasetDict, split: str, most: int | None) -> datasets.Dataset:
    """Return the first rows of a split."""
    if split not in rows:
        name, does = split.split("_")[0], {"train": "train", "validation": "eval", "test": "predict"}
        raise DataError(
            f"There are no rows {split!r}, only {', '.join(rows)}. Add --{name}_file FILE, or leave out "
            f"--do_{does[name]}."
        )
    return rows[split] if most is None else rows[split].select(range(min(most, len(rows[split]))))
