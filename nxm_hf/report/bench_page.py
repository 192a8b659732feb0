"""The page of `nxm bench`: tokens against speed-up, and a table of all times."""

from collections.abc import Sequence

from nxm_hf.inference.bench import DENSE, Bench, Measurement
from nxm_hf.report.chart import Chart, Line
from nxm_hf.report.figure import figure
from nxm_hf.report.html import cards, html_page, html_table, section

HEADER = ("what", "batch", "length", "way", "ms", "quartiles, ms", "speed-up", "quartiles", "error", "verdict")
NOTE = "Medians over dense, measured in turns. Above 1 is faster."


def bench_page(bench: Bench) -> str:
    """Return the measurements of a model as HTML.

    Args:
        bench: The measurements.
    """
    facts = {
        "device": bench.device,
        "weights": bench.dtype,
        "threads": str(bench.threads),
        "bytes of the weights, dense": f"{bench.bytes_dense:,}",
        "bytes of the weights, after to_inference": f"{bench.bytes_packed:,}",
        **{f"note {number}": note for number, note in enumerate(bench.notes, 1)},
    }
    rows = [row for measurement in (*bench.model, *bench.layers) for row in _rows(measurement)]
    sections = [
        section("summary", "Summary", html_table(("name", "value"), list(facts.items()), row_headers=1)),
        section("speed", "Speed-up over dense", cards([figure(chart) for chart in bench_charts(bench)])),
        section("times", "Times", html_table(HEADER, rows, row_headers=1)),
    ]
    return html_page("Inference bench", bench.name, sections)


def bench_charts(bench: Bench) -> list[Chart]:
    """Return a chart for each subject: a curve of the speed-up over tokens for each way to compute it.

    Args:
        bench: The measurements.
    """
    subjects: dict[str, list[Measurement]] = {}
    for measurement in (*bench.model, *bench.layers):
        subjects.setdefault(measurement.subject, []).append(measurement)
    return [_chart(subject, measurements) for subject, measurements in subjects.items()]


def _chart(subject: str, measurements: Sequence[Measurement]) -> Chart:
    """Return the chart of one subject. Of several shapes with the same number of tokens, the first one is drawn."""
    ordered = sorted({each.tokens: each for each in reversed(measurements)}.items())
    ways = dict.fromkeys(name for each in measurements for name in each.timings if name != DENSE)
    lines = []
    for name in ways:
        points = [(tokens, each.speedup(name)) for tokens, each in ordered if name in each.timings]
        lines.append(Line(name, *map(tuple, zip(*points, strict=True))))
    return Chart("speed", subject, "tokens (log)", "speed-up", tuple(lines), note=NOTE, logarithmic_x=True)


def _rows(measurement: Measurement) -> list[list[str]]:
    """Return a row for each way to compute a subject."""
    rows = []
    for name, timing in measurement.timings.items():
        first, third = timing.spread
        shape = [measurement.subject, str(measurement.batch), str(measurement.length), name]
        times = [f"{timing.median * 1e3:.3f}", f"{first * 1e3:.3f} - {third * 1e3:.3f}"]
        if name == DENSE:
            rows.append([*shape, *times, "", "", "", measurement.verdict])
            continue
        low, high = measurement.spread(name)
        gain = [f"{measurement.speedup(name):.2f}", f"{low:.2f} - {high:.2f}", f"{measurement.errors[name]:.1e}"]
        rows.append([*shape, *times, *gain, ""])
    return rows
