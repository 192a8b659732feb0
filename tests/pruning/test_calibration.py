"""Calibration data: texts from everywhere, cut or packed into sequences, and what is said where that cannot be."""

import logging

import pytest
import torch

from nxm_hf import prune
from nxm_hf.pruning.calibration import Sampling
from nxm_hf.pruning.calibration import make_batches as batches_of
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


def write_lines(path, texts):
    path.write_text("\n".join(texts))
    return path


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
    path = write_lines(tmp_path / "texts.txt", texts)

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
    path = write_lines(tmp_path / "texts.txt", texts := make_texts(30))
    stream = [token for text in texts for token in ids_of(text)]
    (first, *_) = sequences(batches_of(path, make_bert(), make_tokenizer(special=False), Sampling(4, 16)))
    assert first == stream[:16]


def test_fewer_texts_than_samples_are_all_used_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        found = batches_of(make_texts(5), make_bert(), make_tokenizer())
    assert len(sequences(found)) == 5
    assert "gives 5 sequences where samples=128 were asked for" in caplog.text


def test_a_file_shorter_than_one_sequence_is_one_sequence(tmp_path):
    path = write_lines(tmp_path / "texts.txt", ["w1 w2"])
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
    with pytest.raises(ValueError, match=r"The tokenizer does not know \d+% of the text.*Pass tokenizer="):
        batches_of(texts, model)
    with pytest.raises(ValueError, match="The tokenizer does not know 100% of the text"):
        batches_of(["w1"], model)  # two of its three tokens are those around each text
    model.name_or_path = str(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"elsewhere has no tokenizer that can be loaded .*Pass tokenizer="):
        batches_of(texts, model)
    model.name_or_path = str(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert sequences(batches_of(texts, model)) == sequences(batches_of(texts, model, make_tokenizer()))


@pytest.mark.parametrize(
    "name, data, kwargs, message",
    [
        ("bert", [], {}, "The calibration data is empty"),
        ("bert", ["", " "], {}, "holds no text, only empty entries"),
        ("vit", ["w1"], {}, r"takes pixel_values, not text; give ready batches"),
        ("bert", ["w1"], {"samples": 0}, r"samples must be a whole number from 1 on; got 0\. Write samples=128"),
        ("bert", ["w1"], {"length": 2.5}, "length must be a whole number"),
    ],
)
def test_calibration_data_that_will_not_do_is_an_error(name, data, kwargs, message):
    with pytest.raises(ValueError, match=message):
        batches_of(data, make_model(name), make_tokenizer(), Sampling(**kwargs))


def test_a_tokenizer_of_another_model_is_an_error():
    with pytest.raises(
        ValueError, match="gives token 49, but the model's vocabulary has 40 entries: tokenizer and model do not match"
    ):
        batches_of(["w45 w1"], make_bert(vocab_size=40), make_tokenizer())
