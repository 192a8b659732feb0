"""Regular expressions for names: the answers of `re`, in bounded time."""

import random
import re
import warnings

import pytest

from nxm_hf.layers.find import find_layers
from nxm_hf.layers.name_pattern import MAX_DEPTH, MAX_LENGTH, MAX_NODES, NamePattern
from tests.support.layers import classifier

ATOMS = ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\W", "^", "$", r"\b", r"\B", r"\Z", "0", "é", "]", "}", "[]a]"]
QUANTIFIERS = ["", "", "", "", "*", "+", "?", "*?", "{2}", "{1,2}", "{,2}", "{1,}", "{,}", "{0}"]
CATASTROPHIC = ["(a+)+$", "^(a|a)*$", "(a|aa)+$", "(.*)*(.*)*x", "(a*)*b", "((a{1,9}){1,9}){1,9}b", "(?=(a+)+b)"]


def expression(chance: random.Random, depth: int = 3) -> str:
    """Return a random expression of the supported kind."""
    kind = chance.random()
    if depth == 0 or kind < 0.3:
        return chance.choice(ATOMS)
    if kind < 0.45:
        return f"{expression(chance, depth - 1)}|{expression(chance, depth - 1)}"
    if kind < 0.75:
        return "".join(expression(chance, depth - 1) for _ in range(chance.randrange(4)))
    group = chance.choice(["(", "(?:", "(", "(?:", "(?=", "(?!"])
    return f"{group}{expression(chance, depth - 1)}){chance.choice(QUANTIFIERS)}"


def test_random_expressions_are_found_where_re_finds_them():
    chance = random.Random(0)
    found = 0
    for _ in range(3000):
        text = expression(chance)
        pattern = NamePattern(text)
        for _ in range(4):
            name = "".join(chance.choice("aab.0é\n ") for _ in range(chance.randrange(7)))
            expected = re.search(text, name) is not None
            assert pattern.is_in(name) == expected, (text, name)
            found += expected
    assert 3000 < found < 11_000


@pytest.mark.parametrize("quantifier", ["", "*", "+", "?", "*?", "{2}", "{1,2}", "{,2}", "{1,}", "{2,}", "{,}", "{0}"])
@pytest.mark.parametrize("part", ["a", "(ab)", "(?:a|b)", "[^b]", "(a*b)"])
def test_a_part_is_repeated_as_often_as_re_repeats_it(part, quantifier):
    for text in (f"^{part}{quantifier}$", f"^b{part}{quantifier}0", f"({part}{quantifier}b){{2}}$"):
        pattern = NamePattern(text)
        for count in range(5):
            for name in ("a" * count, "ab" * count, "b" + "a" * count + "0", "b" + "ab" * count + "0", "aab" * count):
                assert pattern.is_in(name) == (re.search(text, name) is not None), (text, name)


@pytest.mark.parametrize("text", CATASTROPHIC)
def test_no_expression_takes_long(text):
    """`re` would take longer than anybody can wait."""
    assert not NamePattern(text).is_in("a" * 300 + "!")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (r"(a)\1", r"uses '\\\\1', which is not searched for in names. Write it with"),
        ("(?i)query", r"uses '\(\?i'"),
        ("(?<=a)b", r"uses '\(\?<'"),
        ("(?P<x>a)", r"uses '\(\?P'"),
        (r"\x41", r"uses '\\\\x4'"),
        ("a{x}", "uses '{'"),
        ("a" * (MAX_LENGTH + 1), "is longer than 500 characters. Write several entries"),
        ("a{3000}", r"repeats too much: more than 2000 parts. Write smaller numbers in \{m,n\}"),
        ("((a{100}){100}){100}", "repeats too much"),
        ("(((){1000}){1000}){1000}", "repeats too much"),
        *((f"a{{{bounds}}}", "repeats too much") for bounds in ("9" * 400, "9" * 400 + ",", "0," + "9" * 400)),
        ("(" * 40 + ")" * 40, "has more than 30 groups inside each other"),
        ("(" * 240 + ")" * 240, "has more than 30 groups|is not a regular expression: maximum recursion"),
        ("layer.(", "is not a regular expression: missing \\)"),
        ("a)", "is not a regular expression: unbalanced"),
        ("[a", "is not a regular expression: unterminated character set"),
        ("a**", "is not a regular expression: multiple repeat"),
        ("*", "is not a regular expression: nothing to repeat"),
        ("a{2,1}", "is not a regular expression: min repeat"),
        ("[z-a]", "is not a regular expression: bad character range"),
        ("a\\", "is not a regular expression: bad escape"),
        ("a++", "uses '\\+'|multiple repeat"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(text, problem):
    with pytest.raises(ValueError, match=problem):
        NamePattern(text)


@pytest.mark.parametrize(
    ("build", "limit"),
    [
        (lambda size: "a" * size, MAX_LENGTH),
        # One node is the end, "a" is one, and each repetition is two.
        (lambda size: f"a{{{(size - 1) // 2}}}" + "a" * ((size - 1) % 2), MAX_NODES),
        (lambda size: "(" * size + "a" + ")" * size, MAX_DEPTH),
        (lambda size: "(?=" * size + "a" + ")" * size, MAX_DEPTH),
        (lambda size: "(?:(" * (size // 2) + "b|(a)" * (size % 2) + "a" + "))" * (size // 2), MAX_DEPTH),
    ],
    ids=["length", "nodes", "groups", "lookaheads", "groups of two kinds"],
)
def test_what_is_as_large_as_a_limit_is_searched_and_what_is_larger_is_refused(build, limit):
    assert NamePattern(build(limit)).is_in("a" * max(limit, MAX_NODES))
    with pytest.raises(ValueError, match=r"longer than 500|repeats too much|more than 30 groups"):
        NamePattern(build(limit + 1))


def test_random_text_is_an_expression_or_refused():
    chance = random.Random(0)
    accepted = 0
    for _ in range(3000):
        text = "".join(chance.choice(r"ab.^$*+?{}()[]|\-,:=!<P2d9") for _ in range(chance.randrange(9)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # sets that may mean another thing in later versions
            try:
                pattern = NamePattern(text)
            except ValueError:
                continue
            accepted += 1
            assert pattern.is_in("ab.2-d") == (re.search(text, "ab.2-d") is not None), text
    assert accepted > 500


def test_a_refused_entry_is_named_with_its_option():
    with pytest.raises(
        ValueError, match=r"^exclude='re:\(\?i\)query' uses '\(\?i', which .* Write it with \. \[\.\.\.\]"
    ):
        find_layers(classifier(), exclude="re:(?i)query")
    with pytest.raises(ValueError, match=r"^include='re:a{96}a' is longer than 500") as error:
        find_layers(classifier(), include="re:" + "a" * 10_000)
    assert len(str(error.value)) < 200
