"""Running trials: never twice, never at the same time, and not without their parent."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from benchmarks.glue.comparison.records import TRIALS_FOLDER, RecordFile
from benchmarks.glue.comparison.runner import RECORD, RUN_TRIAL, Runner, TrialsFailed
from benchmarks.glue.comparison.trials import Trial
from tests.support.comparison_trials import (
    POINT,
    fake_record,
    write_predictions,
    write_trials,
)


def test_a_trial_that_is_recorded_is_not_trained(tmp_path):
    trial = Trial("rte", "asp", 0, POINT, model="nowhere")
    write_trials(tmp_path, [fake_record(trial, 0.7)])
    Runner(tmp_path).run([trial, trial])
    assert not list((tmp_path / TRIALS_FOLDER).glob("*.log"))


def test_a_whole_trial_that_was_killed_before_it_was_recorded_is_recorded_not_trained(tmp_path):
    trial = Trial("rte", "asp", 0, POINT, model="nowhere")
    record = json.loads(json.dumps(fake_record(trial, 0.7)))
    folder = write_trials(tmp_path, []) / TRIALS_FOLDER / trial.name
    write_predictions(folder, record)
    (folder / RECORD).write_text(json.dumps(record))
    Runner(tmp_path).run([trial])
    assert RecordFile(tmp_path / "results.jsonl").records == {trial.name: record}


def test_a_trial_that_another_process_is_at_is_waited_for_and_not_trained_again(tmp_path):
    trials = [Trial("rte", "asp", seed, POINT, model="nowhere") for seed in (0, 1)]
    here = Runner(tmp_path)
    write_trials(tmp_path, [fake_record(trials[1], 0.7)])
    other = FileLock(tmp_path / TRIALS_FOLDER / ".locks" / trials[0].name, thread_local=False)
    other.acquire()

    def finish_elsewhere() -> None:
        write_trials(tmp_path, [fake_record(trials[0], 0.7)])
        other.release()

    elsewhere = threading.Timer(0.2, finish_elsewhere)
    elsewhere.start()
    here.run(trials)
    elsewhere.join()
    assert len(here.records.of(trials)) == 2 and not list((tmp_path / TRIALS_FOLDER).glob("*.log"))


def test_a_trial_ends_when_its_parent_is_killed(tmp_path):
    """The parent is killed with -9; the end of the child is the end of its output."""
    # A module that never ends, in the place of the scripts that a trial imports.
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "example_scripts.py").write_text("import time\ntime.sleep(600)\n")
    child = str(shutil.copy(RUN_TRIAL, tmp_path))
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {child!r}], stdin=subprocess.PIPE)\n"
        "print('started', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"started\n"
        os.kill(parent.pid, signal.SIGKILL)
        assert parent.stdout.read() == b""  # the end comes only when the child has it open no more


@pytest.mark.slow
def test_a_trial_that_fails_says_why_and_the_others_are_kept(model, rows, tmp_path, capsys):
    good = Trial("mrpc", "asp", 0, POINT, model=model)
    write_trials(tmp_path, [fake_record(good, 0.7)])
    bad = Trial(
        "mrpc", "asp", 1, POINT, model=model, more=("--dataset_name", str(tmp_path / TRIALS_FOLDER), "--use_cpu")
    )
    with pytest.raises(TrialsFailed, match=r"1 of 1 trials failed; their logs: .*\.log"):
        Runner(tmp_path).run([good, bad])
    assert "failed: run_glue.py: " in capsys.readouterr().out
    assert list(RecordFile(tmp_path / "results.jsonl").records) == [good.name]
