"""The campaign of mutants: on a made-up package it counts rightly, and it goes on where it ended."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.mutation.__main__ import CALLERS, EQUIVALENTS
from tests.mutation.campaign import Campaign
from tests.mutation.compiled import compiled_files
from tests.mutation.operators import lines_of_statement, mutants_of
from tests.mutation.pytest_runs import Pytest, Reach
from tests.mutation.sample import Equivalent, read_equivalents
from tests.support.places import TESTS

ROOT = TESTS.parent
PRICES = '''
def count_down(n):
    """Return how many steps lead down to 0.

    >>> count_down(2)
    2
    """
    steps = 0
    while n > 0:
        n -= 1
        steps += 1
    return steps


def price(amount, free):
    if free:
        return 0.0
    return amount * 2.5


def unseen(a, b):
    return a + b
'''
TEST_PRICES = """
from shop.prices import price


def test_prices():
    assert price(4, False) == 10.0 and price(4, True) == 0.0
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer to import than these tests to run
    root = tmp_path / "root"
    for name, text in {"shop/prices.py": PRICES, "tests/test_prices.py": TEST_PRICES, "shop/__init__.py": ""}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def campaign(root: Path, number: int = 1, **changes: object) -> Campaign:
    place = root.parent
    given = dict(root=root, work=place / f"work{number}", results=place / "results.json", least_seconds=3, options=())
    return Campaign(**{**given, "tests_of": lambda file: f"tests/test_{Path(file).name}", **changes})


def test_killed_survived_and_timed_out_mutants_are_told_apart(shop):
    # The doctest alone sees the first and the third.
    wanted = {"n -= 1": "timed out", "amount * 2.5": "killed", "n > 0": "killed", "a + b": "survived"}
    mutants = [m for m in mutants_of("shop/prices.py", PRICES) if m.before in wanted and m.operator != "condition"]
    runs = campaign(shop)
    outcomes = {mutant.before: outcome for mutant, outcome in runs.run(mutants)}
    assert outcomes == wanted
    assert (shop / "shop/prices.py").read_text() == PRICES == (runs.work / "shop/prices.py").read_text()
    assert len(json.loads(runs.results.read_text())) == len(mutants) == 4


BUSY = """
from time import process_time


def test_short():
    pass


def test_busy():
    end = process_time() + 2
    while process_time() < end:
        pass
"""


@pytest.mark.parametrize(("name", "late"), [("test_busy", True), ("test_short", False)])
def test_a_test_that_takes_longer_than_its_own_limit_ends_the_run(name, late, shop):
    """A mutant that loops in one test would else run until the limit of all tests."""
    (shop / "tests/test_prices.py").write_text(BUSY)
    with Pytest(shop) as pytest_, pytest_.load(["tests/test_prices.py"]) as loaded:
        ended = loaded.run(loaded.tests, {}, limit=60, limits={f"tests/test_prices.py::{name}": 0.1})
    assert (ended.late, ended.ok) == (late, not late)


def test_a_campaign_goes_on_where_it_ended_and_runs_again_what_has_new_tests(shop):
    mutants = [m for m in mutants_of("shop/prices.py", PRICES) if m.before in ("a + b", "amount * 2.5")]
    first = mutants[:1]
    assert Counter(dict(campaign(shop, 1).run(first)).values()) == {"killed": 1}
    results = shop.parent / "results.json"
    entries = json.loads(results.read_text())
    entries[first[0].key]["outcome"] = "known"
    results.write_text(json.dumps(entries))
    assert sorted(dict(campaign(shop, 2).run(mutants)).values()) == ["known", "survived"]
    more = TEST_PRICES.replace("price\n", "price, unseen\n", 1) + "    assert unseen(1, 2) == 3\n"
    (shop / "tests/test_prices.py").write_text(more)
    assert Counter(dict(campaign(shop, 3).run(mutants)).values()) == {"killed": 2}


def test_further_tests_meet_what_the_tests_of_the_file_do_not_see(shop):
    """Only those that reach the line, and none that is marked as slow."""
    slow = "import pytest\nfrom shop.prices import unseen\n\n\n@pytest.mark.slow\ndef test_slow():\n    unseen(0, 1)\n"
    other = "from shop.prices import unseen\n\n\ndef test_sum():\n    assert unseen(1, 2) == 3\n"
    (shop / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n")
    mutants = [m for m in mutants_of("shop/prices.py", PRICES) if m.before == "a + b"]
    outcomes = []
    for number, text in enumerate((slow, slow + "\n\n" + other)):
        (shop / "tests/other.py").write_text(text)
        runs = campaign(shop, number, further_tests_of=lambda file: ["tests/other.py"])
        outcomes += dict(runs.run(mutants)).values()
    assert outcomes == ["survived", "killed"]


def test_tests_that_reach_a_line_are_run_first_and_the_shortest_before_the_others(shop):
    names, files = ["tests/test_prices.py", "shop/prices.py"], ["shop/prices.py"]
    with Pytest(shop) as pytest_, pytest_.load(names, files) as loaded:
        reach = loaded.run(loaded.tests, {"shop/prices.py": PRICES}, reach=True).reach
    lines = PRICES.splitlines()
    doctest, test = "shop/prices.py::shop.prices.count_down", "tests/test_prices.py::test_prices"
    assert set(reach.times) == {doctest, test}

    def of(text):
        number = next(number for number, line in enumerate(lines, 1) if text in line)
        return reach.of("shop/prices.py", lines_of_statement(PRICES, number))

    assert of("steps += 1") == [doctest] and of("amount * 2.5") == [test] and of("a + b") == []
    times = {name: seconds for seconds, name in enumerate(["c::1", "a::2", "b::3"])}
    of_lines = {"d.py": {7: ["b::3", "a::"], 8: ["c::1"]}}
    assert Reach(of_lines, times).of("d.py", range(7, 8)) == ["a::2", "b::3"]


HIDDEN = """
from functools import cache

KEPT = []


@cache
def cached():
    return [1, 2 + 3]


def rate():
    return 10


def compiled():
    return 7 * 6


def length(text, more=20):
    return len(text) - more


def note(name):
    KEPT.append(name)
    return 30


TOTAL = 40 * rate()
CODE, NOTES = compiled.__code__, note.__code__
"""
TEST_HIDDEN = """
from pathlib import Path
from shop import hidden

COLLECTED = hidden.cached()
with Path("loads.txt").open("a") as file:
    file.write("loaded ")


def test_what_has_run_before():
    assert hidden.cached() is COLLECTED and COLLECTED == [1, 5] and hidden.TOTAL == 400 and hidden.rate()


def test_what_was_compiled():
    assert eval(hidden.CODE) == 42


def test_length():
    assert hidden.length("abc") == -17
"""
IDENTITY = """

def test_that_functions_have_their_own_code():
    assert hidden.note.__code__ is hidden.NOTES
"""
IN_TURN = """
from shop import hidden


def test_one():
    hidden.KEPT.append("one")


def test_two():  # fails if it is run before the last one
    hidden.note("two")
    assert hidden.KEPT[0] == "one"
"""


@pytest.mark.parametrize("more", ["", IDENTITY], ids=["swapped", "never swapped"])
def test_no_outcome_depends_on_whether_functions_took_over_the_code(more, shop):
    """Not of what ran at import, is in a cache or was compiled, and not of a test that looks at code."""
    (shop / "shop/hidden.py").write_text(HIDDEN)
    (shop / "tests/test_hidden.py").write_text(TEST_HIDDEN + more)
    wanted = dict.fromkeys(["2 + 3", "10", "7 * 6", "20", "len(text) - more", "40"], "killed") | {"30": "survived"}
    mutants = [m for m in mutants_of("shop/hidden.py", HIDDEN) if m.before in wanted]
    assert {mutant.before: outcome for mutant, outcome in campaign(shop).run(mutants)} == wanted


@pytest.mark.parametrize("more", ["", IDENTITY], ids=["swapped", "never swapped"])
def test_a_test_that_needs_another_one_before_it_kills_no_mutant(more, shop):
    (shop / "shop/hidden.py").write_text(HIDDEN)
    (shop / "tests/test_hidden.py").write_text(IN_TURN + more)
    mutants = [m for m in mutants_of("shop/hidden.py", HIDDEN) if m.before == "30"]
    assert list(dict(campaign(shop).run(mutants)).values()) == ["survived"]


def test_tests_are_loaded_once_for_all_mutants_in_functions(shop):
    (shop / "shop/hidden.py").write_text(HIDDEN)
    (shop / "tests/test_hidden.py").write_text(TEST_HIDDEN)
    mutants = [m for m in mutants_of("shop/hidden.py", HIDDEN) if m.before in ("len(text) - more", "len(text)")]
    runs = campaign(shop)
    assert {outcome for _, outcome in runs.run(mutants)} == {"killed"}
    assert (runs.work / "loads.txt").read_text().split() == ["loaded"]


def test_files_of_compilers_their_neighbours_and_what_they_import_are_always_imported():
    files = compiled_files(ROOT, "nxm_hf")
    assert {"nxm_hf/solvers/cpu/launch.py", "nxm_hf/solvers/comparator_network.py"} <= files
    assert not {file for file in files if file.split("/")[1] in ("engine", "methods", "storage")}


def test_code_that_is_compiled_depends_on_no_file_that_is_not_imported_anew():
    intrinsics = pytest.importorskip("nxm_hf.solvers.cpu.intrinsics", reason="the kernels for CPUs need numba")
    assert {Path(file).name for file in CALLERS} == intrinsics.NOT_COMPILED
    assert compiled_files(ROOT, "nxm_hf") >= CALLERS
    for path in (ROOT / "nxm_hf/solvers/cpu").glob("*.py"):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if line.startswith(("from", "import")) and "launch" in line], path


def test_listed_equivalents_are_not_run(shop):
    mutants = [m for m in mutants_of("shop/prices.py", PRICES) if m.before == "a + b"]
    listed = Equivalent("shop/prices.py", "unseen", "a + b", "a - b", "nobody calls it")
    assert list(dict(campaign(shop, equivalents=[listed]).run(mutants)).values()) == ["equivalent"]
    assert not (shop.parent / "results.json").exists()


def test_an_entry_with_a_line_stands_for_mutants_of_that_line_alone():
    text = "A = 2\nB = 2\n"
    alone, both = (Equivalent("a.py", "", "2", "3", "of a test", line) for line in ("B = 2", ""))
    assert [[entry.is_(mutant) for mutant in mutants_of("a.py", text)] for entry in (alone, both)] == [
        [False, True],
        [True, True],
    ]


@pytest.mark.parametrize("count", [1, 20])
def test_tests_that_fail_without_a_mutant_stop_the_campaign(count, shop):
    mutants = mutants_of("shop/prices.py", PRICES)[:count]
    (shop / "tests/test_prices.py").write_text("def test_nothing():\n    assert False\n")
    with pytest.raises(RuntimeError, match="without a mutant"):
        next(campaign(shop).run(mutants))


def test_every_listed_equivalent_is_a_mutant_of_the_tree():
    """An entry whose code has changed is out of date: look at it again."""
    entries = read_equivalents(EQUIVALENTS)
    mutants = {file: mutants_of(file, (ROOT / file).read_text()) for file in {entry.file for entry in entries}}
    for entry in entries:
        assert any(map(entry.is_, mutants[entry.file])), (
            f"{entry.file} {entry.function}: {entry.before} -> {entry.after}"
        )
        assert len(entry.reason.split()) >= 4
