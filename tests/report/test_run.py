"""Reading a run: a damaged or missing file is one line that says why."""

import json

import pytest

from nxm_hf.analysis.recording import ANALYSIS_FILE
from nxm_hf.cli.main import main
from tests.support.report_runs import read_analysis


def _each_state(change):
    def spoil(folder):
        for path in folder.glob("checkpoint-*/trainer_state.json"):
            change(path)

    return spoil


def _plain(folder):
    for path in [*folder.rglob("nxm_*"), *folder.rglob("config.json")]:
        path.unlink()
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        words = json.loads(path.read_text())
        log = [{k: v for k, v in r.items() if not k.startswith("nxm/")} for r in words["log_history"]]
        path.write_text(json.dumps({**words, "log_history": log}))


def _without(key):
    def spoil(folder):
        words = read_analysis(folder)
        del words[key]
        (folder / ANALYSIS_FILE).write_text(json.dumps(words))

    return spoil


SPOILT = {
    "nothing of a Trainer": (_each_state(lambda path: path.unlink()), "give the output_dir of a Trainer"),
    "nothing of ours": (_plain, "is of a training without nxm_hf"),
    "a torn log": (_each_state(lambda path: path.write_text('{"log_history": [')), "trainer_state.json is torn"),
    "a log that is a list": (_each_state(lambda path: path.write_text("[]")), "it must be an object"),
    "no log": (_each_state(lambda path: path.write_text("{}")), "has no log_history"),
    "an empty log": (_each_state(lambda path: path.write_text('{"log_history": []}')), "is empty"),
    "torn samples": (lambda folder: (folder / ANALYSIS_FILE).write_text('{"a"'), f"{ANALYSIS_FILE} is torn"),
    "samples of another format": (lambda folder: (folder / ANALYSIS_FILE).write_text("{}"), "has format None"),
    "samples with a part missing": (_without("excerpt"), "lacks excerpt"),
    "a torn config": (lambda folder: (folder / "nxm_config.json").write_text("{"), "nxm_config.json is torn"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_what_cannot_be_read_is_one_line_that_says_why(fault, runs, capsys):
    spoil, useful = SPOILT[fault]
    spoil(runs["admm"])
    assert main(["report", str(runs["admm"])]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and useful in err and not (runs["admm"] / "report.html").exists()


def test_one_directory_named_twice_and_none_are_errors(runs, capsys):
    assert main(["report", str(runs["admm"]), f"{runs['admm']}/"]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert main(["report", str(runs["admm"] / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
