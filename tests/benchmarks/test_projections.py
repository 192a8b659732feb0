"""The benchmark of masks and projections: every call of every pattern is timed."""

from benchmarks.projections import CALLS, measure


def test_each_call_of_each_pattern_has_a_time():
    patterns = ["2:4", "2:4-transposable", "unstructured:0.5"]
    times = measure(patterns, 32, 1)
    assert set(times) == {("abs", ""), ("clone", ""), *((call, text) for call in CALLS for text in patterns)}
    assert all(seconds > 0 for seconds in times.values())
