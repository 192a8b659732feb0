"""Texts of patterns: what `parse` reads, and what it says of texts that it cannot read."""

import pytest

from nxm_hf.patterns import NM, Block, Unstructured, parse


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", NM(2, 4)),
        ("4x2", NM(2, 4)),
        ("8x4", NM(4, 8)),
        ("1:256", NM(1, 256)),
        ("block:4:0.5", Block(1, 4, 0.5)),
        ("block:1x4:.5", Block(1, 4, 0.5)),
        ("unstructured:5e-1", Unstructured(0.5)),
    ],
)
def test_a_text_is_parsed_to_its_pattern(text, pattern):
    assert parse(text) == pattern


def test_the_papers_spelling_is_printed_as_ours():
    assert str(parse("4x2")) == "2:4" and str(parse("block:1x4:0.5")) == "block:4:0.5"


@pytest.mark.parametrize(
    ("text", "useful"),
    [
        ("4:2", "Write '2:4'"),
        ("4:4", "1 <= N < M <= 256.*'dense' for no pruning"),
        ("4x4", "'dense' for no pruning"),
        ("0:4", "1 <= N < M <= 256"),
        ("2:300", "1 <= N < M <= 256"),
        ("2x4", "two readings.*keep 4 of every 2.*keep 2 of every 4.*write '2:4'"),
        ("abc", "'2:4', '2:4-transposable', 'unstructured:0.5', 'block:4:0.5', 'dense'"),
        ("", "The forms are, by example"),
        ("2:4:1", "The forms are, by example"),
        ("2:4-transpose", "Write '2:4-transposable'"),
        ("16:32T", "Write '16:32-transposable'"),
        ("4:33-transposable", "need M <= 32.*Write '16:32-transposable', or '4:33' for rows alone"),
        ("4:2-transposable", "N:M keeps N of every M"),
        ("unstructured", "not a density.*Write 'unstructured:0.5'"),
        ("unstructured:half", "'half' is not a density.*Write 'unstructured:0.5'"),
        ("unstructured:0", "not between 0 and 1.*Write 'unstructured:0.5'"),
        ("unstructured:1.0", "'dense' for no pruning"),
        ("unstructured:nan", "not between 0 and 1"),
        ("block:4", "Write 'block:4:0.5' or 'block:4x4:0.5'"),
        ("block:0:0.5", "both sides need a whole number >= 1"),
        ("block:4:2", "not between 0 and 1.*Write 'block:4x4:0.5'"),
        ("block:4:x", "not a density"),
    ],
)
def test_parse_says_what_to_write(text, useful):
    with pytest.raises(ValueError, match=useful):
        parse(text)


@pytest.mark.parametrize("text", [None, 0.5, ("2", "4")])
def test_parse_wants_a_text(text):
    with pytest.raises(TypeError, match="Write '2:4'"):
        parse(text)


@pytest.mark.parametrize(
    ("make", "useful"),
    [
        (lambda: NM(4, 2), "Write '2:4'"),
        (lambda: NM(2.0, 4), r"two whole numbers.*NM\(2, 4\)"),
        (lambda: NM(True, 4), "two whole numbers"),
        (lambda: NM(-1, 4), "1 <= N < M"),
        (lambda: Unstructured(1), "not between 0 and 1"),
        (lambda: Block(4.0, 4, 0.5), "whole number"),
    ],
)
def test_wrong_patterns_cannot_be_made(make, useful):
    with pytest.raises(ValueError, match=useful):
        make()
