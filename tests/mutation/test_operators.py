"""What can be changed in a file, and which of it a sample draws."""

import ast

import pytest

from tests.mutation.__main__ import FOLDERS
from tests.mutation.operators import lines_of_statement, mutants_of
from tests.mutation.sample import sample
from tests.support.places import TESTS

ROOT = TESTS.parent


def of_text(text: str) -> set[tuple[str, str]]:
    return {(mutant.operator, mutant.applied_to(text)) for mutant in mutants_of("a.py", text)}


@pytest.mark.parametrize(
    ("text", "mutants"),
    [
        ("a < b", {("boundary", "(a <= b)")}),
        ("a == b != c", {("opposite", "(a != b != c)"), ("opposite", "(a == b == c)")}),
        ("x = a // b", {("arithmetic", "x = (a * b)")}),
        ("x = not a", {("negation", "x = (a)")}),
        ("x = a and b", {("and-or", "x = (a or b)")}),
        ("x = 3", {("constant", "x = (4)")}),
        ("x = 0.5", {("constant", "x = (1.0)")}),
        ("x = True", {("constant", "x = (False)")}),
        ("f(a, b)", {("swap", "(f(b, a))"), ("statement", "pass")}),
        ("x = max(a, b)", {("function", "x = (min(a, b))")}),
        ("x = f(a=b)", {("argument", "x = (f())")}),
        ("x = zip(a, b, strict=True)", {("swap", "x = (zip(b, a, strict=True))")}),
        ("x = y.clone()", {("call", "x = (y)")}),
        ("y.zero_()", {("statement", "pass")}),
        ("x = min(y)", {("function", "x = (max(y))")}),
        ("if é:\n    x[a] = b", {("condition", "if (not é):\n    x[a] = b"), ("statement", "if é:\n    pass")}),
        ("x = (a +\n b)", {("arithmetic", "x = ((a - b\n))")}),
        ("'text'", set()),
        ("raise ValueError(1 + 1)", {("statement", "pass")}),
        ("def f(x: List[1 + 1] = 1): ...", {("constant", "def f(x: List[1 + 1] = (2)): ...")}),
    ],
)
def test_each_operator_changes_one_place(text, mutants):
    assert of_text(text) == mutants


def test_every_mutant_of_the_library_compiles_and_keeps_the_lines():
    mutants = sample(ROOT, [f"nxm_hf/{folder}" for folder in FOLDERS], 300, seed=0)
    for mutant in mutants:
        text = (ROOT / mutant.file).read_text()
        changed = mutant.applied_to(text)
        assert changed != text and len(changed.splitlines()) == len(text.splitlines())
        ast.parse(changed)
    assert len({mutant.key for mutant in mutants}) == 300
    assert {mutant.file.split("/")[1] for mutant in mutants} == set(FOLDERS)


def test_a_larger_sample_begins_with_the_smaller_one_and_another_seed_draws_others():
    folders = ["nxm_hf/methods", "nxm_hf/engine"]
    few = sample(ROOT, folders, 10, seed=1)
    assert sample(ROOT, folders, 30, seed=1)[:10] == few != sample(ROOT, folders, 10, seed=2)


@pytest.mark.parametrize(("line", "lines"), [(3, [3, 4]), (4, [3, 4]), (5, [5]), (1, [1]), (2, [2])])
def test_a_line_belongs_to_the_smallest_statement_around_it(line, lines):
    text = "def f(a):\n    if a:\n        b = (a +\n             1)\n        return b\n"
    assert list(lines_of_statement(text, line)) == lines
