"""Texts and rows: from a list, a file or a Hub data set, for calibration."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nxm_hf.config.values import as_list


def read_texts(source: str | Path | Iterable, columns: str | Sequence[str] | None = None) -> Iterator[str]:
    """The texts of a list, of a file (.txt, .parquet, .csv, .tsv, .jsonl), or of a data set of the Hub, by its name.

    Rows have columns; the first that holds text is read, or those that are named. Empty texts are passed over.

    >>> list(read_texts([{"id": 1, "title": "One.", "body": "Two."}, {"id": 2, "title": " ", "body": "Three."}]))
    ['One.']
    """
    wanted = as_list("columns", columns)
    for row in read_rows(source) if isinstance(source, (str, Path)) else source:
        if isinstance(row, Mapping):
            wanted = wanted or [_first_text(row)]
            found = [_cell(row, column) for column in wanted]
        else:
            found = [row]
        yield from (text.strip() for text in found if isinstance(text, str) and text.strip())


def _first_text(row: Mapping[str, Any]) -> str:
    for column, value in row.items():
        if isinstance(value, str):
            return column
    raise ValueError(f"No column holds text; there are {', '.join(row)}. Name one, as in columns=['sentence'].")


def _cell(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise ValueError(f"There is no column {column!r}; there are {', '.join(row)}. Name one of these in columns=.")
    return row[column]


def read_rows(source: str | Path) -> Iterator[str | Mapping[str, Any]]:
    """The rows of a file or of a data set of the Hub; lines, where it has no columns."""
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; a file is needed. Name one of those in it.")
    if not path.is_file():
        return _hub_rows(str(source))
    return _READERS.get(path.suffix.lower(), _lines)(path)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text ({error}). Give text, or a file that ends in {', '.join(_READERS)}."
        ) from None


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line) if line.strip() else ""
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}). Give one object on each line.") from None
        yield row


def _table(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ImportError(f"Reading {path} takes pyarrow, which is not installed: pip install pyarrow.") from None
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file ({error}). Download it again.") from None


def _hub_rows(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of the training split, read as they come; "name:configuration" where there are several."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            f"{name} is no file here, and looking on the Hub takes `datasets`, which is not installed: "
            "pip install datasets, or give a file."
        ) from None
    repository, _, configuration = name.partition(":")
    try:
        return iter(load_dataset(repository, configuration or None, split="train", streaming=True))
    except Exception as error:  # of whatever kind: datasets has many, and all mean that there is nothing to read
        why = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{name} is neither a file nor a data set of the Hub in reach: {why}") from error


_READERS = {".parquet": _parquet, ".csv": _table, ".tsv": _table, ".jsonl": _json_lines}
