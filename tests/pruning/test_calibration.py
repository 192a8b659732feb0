"""Calibration data: texts from everywhere, cut or packed into sequences, and what is said where that cannot be."""

import json
import logging

import pyarrow
import pyarrow.parquet
import pytest
import torch

from nxm_hf import prune
from nxm_hf.pruning.calibration import Sampling
from nxm_hf.pruning.calibration import make_batches as batches_of
from nxm_hf.pruning.text_rows import read_texts
from tests.support.models import make_batches, make_bert, make_model, make_texts, make_tokenizer

CLS, SEP, PAD = 1, 2, 0


def sequences(batches) -> list[list[int]]:
    """The tokens of each row without its padding."""
    rows = [
        (ids, mask) for batch in batches for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    return [ids[mask.bool()].tolist() for ids, mask in rows]


def ids_of(text: str) -> list[int]:
    """w0 is token 4."""
    return [int(word[1:]) + 4 for word in text.split()]


# -- texts ---------------------------------------------------------------------------------------------------------


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


# -- batches -------------------------------------------------------------------------------------------------------


def test_a_list_of_texts_is_a_list_of_sequences_with_padding_that_the_mask_knows():
    texts = make_texts(11)
    batches = batches_of(texts, make_bert(), make_tokenizer(), Sampling(samples=11, length=10, batch_size=4))
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 3]
    assert sequences(batches) == [[CLS, *ids_of(text)[:8], SEP] for text in texts]
    for batch in batches:
        assert (batch["input_ids"][~batch["attention_mask"].bool()] == PAD).all()
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


@pytest.mark.parametrize("length", [5, 16])
def test_packed_texts_are_sequences_of_full_length(length, tmp_path):
    texts = make_texts(30)
    path = write(tmp_path / "texts.txt", texts, "txt")

    def sampling(samples: int) -> Sampling:
        return Sampling(samples=samples, length=length, pack=True)

    stream = [token for text in texts for token in ids_of(text)]
    room = length - 2
    whole = [stream[n : n + room] for n in range(0, len(stream) - room + 1, room)]
    rows = sequences(batches_of(path, make_bert(), make_tokenizer(), sampling(len(whole))))
    assert rows == [[CLS, *part, SEP] for part in whole]
    fewer = sequences(batches_of(path, make_bert(), make_tokenizer(), sampling(4)))
    assert fewer == [rows[n * len(rows) // 4] for n in range(4)]
    cut = batches_of(path, make_bert(), make_tokenizer(), Sampling(samples=30, length=length))
    assert sequences(cut) == [[CLS, *ids_of(text)[:room], SEP] for text in texts]


def test_a_file_is_packed_where_the_tokenizer_marks_no_end_of_a_text(tmp_path):
    path = write(tmp_path / "texts.txt", texts := make_texts(30), "txt")
    stream = [token for text in texts for token in ids_of(text)]
    (first, *_) = sequences(batches_of(path, make_bert(), make_tokenizer(special=False), Sampling(4, 16)))
    assert first == stream[:16]


def test_fewer_texts_than_samples_are_all_used_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        found = batches_of(make_texts(5), make_bert(), make_tokenizer())
    assert len(sequences(found)) == 5
    assert "gives 5 sequences where samples=128 were asked for" in caplog.text


def test_a_file_shorter_than_one_sequence_is_one_sequence(tmp_path):
    path = write(tmp_path / "texts.txt", ["w1 w2"], "txt")
    assert sequences(batches_of(path, make_bert(), make_tokenizer())) == [[CLS, 5, 6, SEP]]


def test_a_tokenizer_with_nothing_to_pad_with_will_do():
    texts = make_texts(6)
    found = batches_of(texts, make_model("gpt2"), make_tokenizer(special=False), Sampling(samples=6, length=12))
    assert sequences(found) == [ids_of(text)[:12] for text in texts]


def test_sequences_are_no_longer_than_the_model_reads():
    text = " ".join(make_texts(60))
    for name, longest in (("gpt2", 16), ("bert", 32)):
        (row,) = sequences(batches_of([text], make_model(name), make_tokenizer(), Sampling(1, 100)))
        assert len(row) == longest


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_decoder_of_a_model_that_has_two_stacks_reads_the_text_one_token_later(name):
    model = make_model(name)
    batches = batches_of(make_texts(6), model, make_tokenizer(), Sampling(6, 10, 3))
    for batch in batches:
        ids, written = batch["input_ids"], batch["decoder_input_ids"]
        assert torch.equal(written[:, 1:], ids[:, :-1]) and (written[:, 0] == model.config.decoder_start_token_id).all()
        assert torch.equal(batch["decoder_attention_mask"], batch["attention_mask"])
    assert all(layer.note == "" or "tokens for" in layer.note for layer in prune(model, "2:4", "wanda", batches).layers)


def test_ready_batches_are_taken_as_they_are():
    batches = make_batches("vit")
    assert batches_of(iter(batches), make_model("vit")) == batches


def test_the_tokenizer_is_that_of_the_models_own_directory(tmp_path):
    model = make_bert()
    texts = make_texts(4)
    with pytest.raises(ValueError, match=r"is from no directory, so its tokenizer is not known\. Pass tokenizer="):
        batches_of(texts, model)
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    # transformers makes an empty one of a directory without
    with pytest.raises(ValueError, match=r"The tokenizer does not know \d+% of the calibration text.*Pass tokenizer="):
        batches_of(texts, model)
    model.name_or_path = str(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"elsewhere has no tokenizer that can be loaded .*Pass tokenizer="):
        batches_of(texts, model)
    model.name_or_path = str(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert sequences(batches_of(texts, model)) == sequences(batches_of(texts, model, make_tokenizer()))


@pytest.mark.parametrize(
    "name, data, words, message",
    [
        ("bert", [], {}, "The calibration data is empty"),
        ("bert", ["", " "], {}, "holds no text, only empty entries"),
        ("vit", ["w1"], {}, r"takes pixel_values, not text; give ready batches"),
        ("bert", ["w1"], {"samples": 0}, r"samples must be a whole number from 1 on; got 0\. Write samples=128"),
        ("bert", ["w1"], {"length": 2.5}, "length must be a whole number"),
    ],
)
def test_calibration_data_that_will_not_do_is_an_error(name, data, words, message):
    with pytest.raises(ValueError, match=message):
        batches_of(data, make_model(name), make_tokenizer(), Sampling(**words))


def test_a_tokenizer_of_another_model_is_an_error():
    with pytest.raises(
        ValueError, match="gives token 49, but the model's vocabulary has 40 entries: tokenizer and model do not match"
    ):
        batches_of(["w45 w1"], make_bert(vocab_size=40), make_tokenizer())
