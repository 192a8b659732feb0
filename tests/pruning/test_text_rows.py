"""Texts and rows from lists, files and the Hub, and errors that name the file."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from nxm_hf.pruning.text_rows import read_texts
from tests.support.models import make_texts


def write(path, texts, kind):
    rows = [{"number": n, "text": text, "more": f"{text} w1"} for n, text in enumerate(texts)]
    if kind == "txt":
        path.write_text("\n".join(texts))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "csv", "tsv"])
def test_every_kind_of_file_gives_the_same_texts(kind, tmp_path):
    texts = make_texts(10)
    path = write(tmp_path / f"texts.{kind}", texts, kind)
    if kind == "csv" or kind == "tsv":  # where every cell is text, the first column is a number's
        assert list(read_texts(path)) == [str(n) for n in range(10)]
        assert list(read_texts(path, "text")) == texts
    else:
        assert list(read_texts(path)) == list(read_texts(str(path))) == texts
    if kind != "txt":
        assert list(read_texts(path, ["text", "more"]))[:2] == [texts[0], f"{texts[0]} w1"]
        with pytest.raises(ValueError, match="There is no column 'sentence'; there are number, text, more"):
            list(read_texts(path, "sentence"))


def test_empty_texts_are_passed_over_and_rows_are_read_as_a_file_is():
    assert list(read_texts(["w1", "", "  \n", " w2 "])) == ["w1", "w2"]
    assert list(read_texts([{"a": None, "b": "w1"}, {"a": "w5", "b": None}])) == ["w1"]
    with pytest.raises(ValueError, match=r"No column holds text; there are a\. Name one"):
        list(read_texts([{"a": 1}]))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.jsonl", b"{", "line 1 is not JSON"),
        ("x.parquet", b"PAR1 not really", "is not a parquet file"),
        ("x.txt", b"\xff\xfe\x00", "is not text"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        list(read_texts(tmp_path / name))


def test_what_is_neither_file_nor_data_set_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="is a directory; a file is needed"):
        list(read_texts(tmp_path))
    pytest.importorskip("datasets")
    with pytest.raises(FileNotFoundError, match="nobody/nothing is neither a file nor a data set of the Hub in reach"):
        list(read_texts("nobody/nothing"))
