"""The page of a bench has a chart for each subject, and every number in a table."""

from nxm_hf.inference.bench import Bench, Measurement
from nxm_hf.inference.timing import Timing
from nxm_hf.report.bench_page import bench_charts, bench_page


def measurement(subject, batch, length, **medians):
    """Return a measurement with constant times, in seconds."""
    timings = {name: Timing((seconds,) * 3) for name, seconds in medians.items()}
    return Measurement(subject, batch, length, timings, {name: 1e-7 for name in medians if name != "dense"})


BENCH = Bench(
    name="a <model>",
    device="cpu",
    dtype="float32",
    threads=2,
    layers=(measurement("8x8 2:4, 4 layers", 1, 16, dense=2.0, cpu=1.0),),
    model=(
        measurement("whole model", 8, 16, dense=3.0, packed=2.0),
        measurement("whole model", 1, 16, dense=4.0, packed=2.0, other=5.0),
        measurement("whole model", 2, 64, dense=3.0, packed=1.0),  # 128 tokens, as the first one
    ),
    bytes_dense=2000,
    bytes_packed=1200,
    notes=("Not compiled: no g++",),
)


def test_a_chart_has_a_curve_for_each_way_in_the_order_of_tokens():
    whole, layer = bench_charts(BENCH)
    assert [(line.name, line.xs, line.ys) for line in whole.lines] == [
        ("packed", (16, 128), (2.0, 1.5)),
        ("other", (16,), (0.8,)),
    ]
    assert layer.title == "8x8 2:4, 4 layers" and layer.lines[0].ys == (2.0,)


def test_the_page_shows_all_times_and_escapes_names():
    page = bench_page(BENCH)
    assert "a &lt;model&gt;" in page and "<model>" not in page
    assert page.count('<svg class="chart"') == 2
    assert "2000.000" in page and "packed is faster: 1.50x" in page and "no g++" in page
