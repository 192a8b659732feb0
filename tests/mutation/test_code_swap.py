"""Functions that take over the code of another text of their file, and texts of which they cannot."""

import sys
from types import ModuleType

import pytest

from tests.mutation.server.code_swap import NotSwappable, loaded_functions, swap
from tests.mutation.server.line_tracer import LineTracer

BEFORE = """
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Box:
    size: int = field(default=1)

    @property
    def area(self):
        return self.size * self.size

    @classmethod
    @contextmanager
    def opened(cls):
        yield cls(5)


def adder(n, step=1):
    def add(x):
        return x + n + step

    return add


ADD = adder(10)
PAIR = (lambda x: x + 1), (lambda x: x + 2)
AREA = Box.area.fget
"""
PATH = "/somewhere/boxes.py"


@pytest.fixture
def boxes(monkeypatch):
    module = ModuleType("boxes")
    monkeypatch.setitem(sys.modules, "boxes", module)  # dataclasses look there
    exec(compile(BEFORE, PATH, "exec"), vars(module))
    return module


def values(boxes: ModuleType) -> dict[str, object]:
    with boxes.Box.opened() as box:
        opened = box.size
    both = [function(0) for function in boxes.PAIR]
    return {"area": boxes.Box(3).area, "opened": opened, "made": boxes.ADD(0), "new": boxes.adder(1)(0), "both": both}


def swapped(after: str) -> set[int]:
    return swap(loaded_functions([PATH])[PATH], PATH, BEFORE, after)


def test_functions_with_their_own_code_compiled_again_do_the_same_in_other_code_objects(boxes):
    before, code = values(boxes), boxes.AREA.__code__
    codes = swapped(BEFORE)
    assert values(boxes) == before and boxes.AREA.__code__ is not code and id(boxes.AREA.__code__) in codes


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("self.size * self.size", "self.size + self.size", {"area": 6}),
        ("yield cls(5)", "yield cls(6)", {"opened": 6}),
        ("x + n + step", "x + n - step", {"made": 9, "new": 0}),  # in a closure that was there, and in a new one
        ("x: x + 2", "x: (x + 30)", {}),  # the line of the module is the same, but for its columns
    ],
)
def test_every_function_takes_over_its_code_wherever_it_is_held(old, new, changed, boxes):
    before = values(boxes)
    codes = swapped(BEFORE.replace(old, new))
    assert values(boxes) == {**before, **(changed or {"both": [1, 30]})}
    assert id(boxes.adder.__code__) in codes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ADD = adder(10)", "ADD = adder(11)"),
        ("ADD = adder(10)", "ADD = adder(10.0)"),
        ("step=1", "step=2"),
        ("default=1", "default=2"),
        ("    @classmethod\n", "    \n"),
        (", (lambda x: x + 2)", ""),
        ("x + n + step", "x + step"),
        ("    return add", "    return (lambda x: x)"),
    ],
)
def test_functions_stay_as_they_are_if_more_than_their_bodies_differs(old, new, boxes):
    before = values(boxes)
    text = BEFORE.replace(old, new)
    assert text != BEFORE
    if "lambda x: x)" in new:
        text = text.replace("    def add(x):\n        return x + n + step\n", "    pass\n    pass\n")
    with pytest.raises(NotSwappable):
        swapped(text)
    assert values(boxes) == before


def test_only_lines_of_the_given_code_count_each_for_the_test_that_runs(boxes):
    old = boxes.AREA.__code__
    codes = swapped(BEFORE)
    last, tracer = sys.gettrace(), LineTracer([PATH], codes)
    tracer.start()
    try:
        tracer.enter("first")
        boxes.Box(3).area  # noqa: B018
        assert tracer.enter("second") == "first"
        boxes.adder(1)(0)
        boxes.AREA.__code__ = old
        boxes.Box(3).area  # noqa: B018
    finally:
        tracer.stop()
        sys.settrace(last)
    lines = {BEFORE.splitlines()[line - 1].strip(): names for line, names in tracer.lines()[PATH].items()}
    seconds = {"def add(x):", "return x + n + step", "return add"}
    assert lines == {"return self.size * self.size": ["first"], **{line: ["second"] for line in seconds}}
