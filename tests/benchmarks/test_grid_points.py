"""The table of what the settings were chosen by."""

from benchmarks.glue.comparison.page import render
from benchmarks.glue.comparison.trials import Trial
from tests.support.comparison_trials import (
    POINT,
    fake_record,
    table_rows,
    write_trials,
)


def test_the_page_shows_what_the_settings_were_chosen_by(model, tmp_path, without_plots):
    final = [Trial(task, recipe, 0, POINT, model=model) for task in ("mrpc", "rte") for recipe in ("dense", "asp")]
    tried = {"1e-4": (0.9, 0.6), "1e-3": (0.5, 0.7), "1e-2": (0.8, 0.8), "1": (float("nan"),) * 2}
    for value in range(2, 6):
        tried[f"{value}"] = (0.1, 0.1 + value / 100)
    trials = [
        fake_record(Trial("mrpc", "asp", seed, (("learning_rate", rate),), 0.1, model), 0.5)
        | {"metrics": {"eval_f1": scores[seed]}}
        for rate, scores in tried.items()
        for seed in (0, 1)
    ]
    others = [trials[0] | {"name": "other", "model": "other", "metrics": {"eval_f1": 1.0}}]
    write_trials(tmp_path, [*map(fake_record, final, (0.9, 0.6, 0.9, 0.6)), *trials, *others])
    text = render(tmp_path)
    assert text.count("held out, with 2 seeds:") == 1 and "Tried on 10% of the training rows" in text
    assert table_rows(text, "mrpc", 3) == {
        "asp": [
            "learning_rate=1e-2: 0.8000",
            "learning_rate=1e-4: 0.7500; learning_rate=1e-3: 0.6000; learning_rate=5: 0.1250; "
            "learning_rate=4: 0.1200; 3 more",
        ]
    }
