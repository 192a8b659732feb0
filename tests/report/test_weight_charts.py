"""The charts of weights and masks: one for both runs where their axes agree."""

from nxm_hf.report import charts, read_runs
from nxm_hf.report.weight_charts import weight_charts


def test_two_runs_are_in_one_chart_where_the_axes_agree_and_else_named(made):
    found = read_runs([made["sr-ste"], made["rigl"]])
    titles = [chart.title for chart in charts(found)]
    assert len(set(titles)) == len(titles)
    (sizes,) = (chart for chart in charts(found) if chart.title == "Sizes of weights")
    assert [line.name for line in sizes.lines] == [
        f"{run}: {what}" for run in made if run != "admm" for what in ("kept", "pruned")
    ]
    alone = {line.name: line for chart in weight_charts(found[1]) if chart.title == sizes.title for line in chart.lines}
    assert sizes.lines[2].ys == alone["kept"].ys
    (admm,) = read_runs([made["admm"]])
    differing = [chart.title for chart in charts([found[0], admm]) if chart.title.startswith("Times in the mask")]
    assert differing == ["Times in the mask of sr-ste", "Times in the mask of admm"]
    assert [chart.title for chart in weight_charts(admm)][:2] == ["Sizes of weights", "Times in the mask"]
