"""Read texts and rows with columns from a list, a file or a Hub dataset.

Only the Hub is read with `datasets`. It leaves files open, which is a ResourceWarning, and a CSV must not need it.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nxm_hf.config.hub import looks_like_path
from nxm_hf.config.values import as_list

Row = str | Mapping[str, Any]


def read_texts(source: str | Path | Iterable, columns: str | Sequence[str] | None = None) -> Iterator[str]:
    """Yield the texts of a list, a file or a Hub dataset, without empty ones.

    Args:
        source: Texts, or rows with columns; the path of a .txt, .parquet, .csv, .tsv or .jsonl file; or the name of
            a Hub dataset.
        columns: The columns to read; by default the first column that holds text.

    Yields:
        The texts, stripped.

    Raises:
        ValueError: If a file cannot be read, or a column does not exist.
        FileNotFoundError: If there is neither a file nor a Hub dataset of this name.
        ImportError: If reading needs a package that is not installed.

    >>> list(read_texts([{"id": 1, "title": "One.", "body": "Two."}, {"id": 2, "title": " ", "body": "Three."}]))
    ['One.']
    """
    chosen = as_list("columns", columns)
    for row in read_rows(source) if isinstance(source, (str, Path)) else source:
        if isinstance(row, Mapping):
            chosen = chosen or [_first_text_column(row)]
            cells = [_cell(row, column) for column in chosen]
        else:
            _check_no_columns(row, chosen)
            cells = [row]
        yield from (text.strip() for text in cells if isinstance(text, str) and text.strip())


def joined_text(source: str | Path | Iterable, columns: str | Sequence[str] | None = None) -> str:
    """Return the text of a list, a file or a Hub dataset as one, with spaces and empty rows as they are.

    Rows are joined by two line breaks, as is usual for WikiText. The lines of a .txt file are left as they are.

    Args:
        source: As in `read_texts`.
        columns: The columns to read; by default the first column that holds text.

    Raises:
        ValueError: If a file cannot be read, or a column does not exist.
        FileNotFoundError: If there is neither a file nor a Hub dataset of this name.
    """
    chosen, cells, is_file_of_lines = as_list("columns", columns), [], isinstance(source, (str, Path))
    for row in read_rows(source) if isinstance(source, (str, Path)) else source:
        if isinstance(row, Mapping):
            is_file_of_lines = False
            chosen = chosen or [_first_text_column(row)]
            cells += [text for column in chosen if isinstance(text := _cell(row, column), str)]
        elif isinstance(row, str):
            _check_no_columns(row, chosen)
            cells.append(row)
    if not any(map(str.strip, cells)):
        raise ValueError(f"{source if is_file_of_lines else 'The text'} is empty. Name a file that holds text.")
    return ("" if is_file_of_lines else "\n\n").join(cells)


def _check_no_columns(row: Any, columns: list[str] | None) -> None:
    """Raise if columns are named of a row that has none."""
    if columns is not None and str(row).strip():
        raise ValueError(f"The texts have no columns, and got columns={columns}. Leave columns out.")


def _first_text_column(row: Mapping[str, Any]) -> str:
    for column, value in row.items():
        if isinstance(value, str):
            return column
    raise ValueError(f"No column holds text; there are {', '.join(row)}. Name one, as in columns=['sentence'].")


def _cell(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise ValueError(f"There is no column {column!r}; there are {', '.join(row)}. Name one of these in columns=.")
    return row[column]


def read_rows(source: str | Path) -> Iterator[Row]:
    """Read the rows of a file, or of the training split of a Hub dataset.

    Args:
        source: The path of a file, or the name of a Hub dataset. "name:configuration" selects a configuration.

    Returns:
        An iterator over rows with columns; over lines, if the file has no columns.

    Raises:
        ValueError: If the file is a directory or cannot be read.
        FileNotFoundError: If there is neither a file nor a Hub dataset of this name.
        ImportError: If reading needs a package that is not installed.
    """
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; a file is needed. Name one of those in it.")
    if not path.is_file():
        check_paths(source)
        return _hub_rows(str(source))
    return _READERS.get(path.suffix.lower(), _lines)(path)


def check_paths(*sources: object) -> None:
    """Raise if a source is the path of a file that does not exist. A name on the Hub is not looked for.

    Args:
        sources: Paths of files, names of Hub datasets, or rows, which are not looked at.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    for source in sources:
        is_path = isinstance(source, Path) or (isinstance(source, str) and looks_like_path(source))
        if is_path and not Path(str(source)).exists():
            if isinstance(source, str) and " " in source and not Path(source).suffix:
                raise FileNotFoundError(f"There is no file {source[:100]!r}. If it is a text, write [{source[:20]!r}].")
            raise FileNotFoundError(f"There is no file {source}. Name a file of texts, or a data set on the Hub.")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text ({error}). Give text, or a file that ends in {', '.join(_READERS)}."
        ) from None


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line) if line.strip() else ""
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}). Give one object on each line.") from None
        yield row


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowInvalid  # type: ignore[import-untyped]  # pyarrow has no stubs
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError(f"Reading {path} takes pyarrow, which is not installed: pip install pyarrow.") from None
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file ({error}). Download it again.") from None


def _hub_rows(name: str) -> Iterator[Row]:
    """Stream the training split of a Hub dataset."""
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
    except Exception as error:  # datasets raises many types, and all of them mean that nothing can be read
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{name} is neither a file nor a data set of the Hub in reach: {reason}") from error


_READERS = {".parquet": _parquet_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_lines}
