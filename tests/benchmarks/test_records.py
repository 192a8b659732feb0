"""Records of finished trials, on disk and shared between processes."""

import json
import threading

import pytest
from filelock import FileLock

from benchmarks.glue.comparison.records import RecordFile, make_record, similarities
from benchmarks.glue.comparison.trials import Trial
from tests.support.comparison_trials import (
    POINT,
    fake_record,
    write_predictions,
)


def test_a_line_that_a_kill_cut_off_is_neither_read_nor_built_upon(tmp_path):
    path = tmp_path / "results.jsonl"
    first, second = (fake_record(Trial("rte", "asp", seed), 0.7) for seed in (0, 1))
    RecordFile(path).add(first)
    with path.open("a") as file:
        file.write(json.dumps(second)[:90])
    again = RecordFile(path)
    assert list(again.records) == [first["name"]]
    again.add(second)
    assert list(RecordFile(path).records) == [first["name"], second["name"]]
    path.write_text(path.read_text().replace("{", "(", 1))
    with pytest.raises(ValueError, match=r"Line 1 of .*results.jsonl is no record .*Remove it"):
        RecordFile(path)


@pytest.mark.parametrize("hold_out", (0.0, 0.1))
def test_of_a_trial_no_predictions_are_kept(hold_out, tmp_path):
    """A search on a large task would write down hundreds of thousands that nothing reads."""
    trial = Trial("mrpc", "asp", 0, POINT, hold_out)
    made = fake_record(trial, 0.7)
    write_predictions(tmp_path, made)
    (tmp_path / "all_results.json").write_text(json.dumps(made["metrics"]))
    (tmp_path / "trainer_state.json").write_text('{"log_history": [], "global_step": 2}')
    record = make_record(trial, tmp_path, 1.0)
    assert record["predictions"] == ([] if hold_out else made["predictions"])
    assert record["recall"] == made["recall"] and record["metrics"] == made["metrics"]


def test_similarities_of_admm_are_those_of_its_iterations_from_the_second_on():
    logged = [(0, 1, 1.0), (1, 1, 1.0), (1, 1, 1.0), (1, 2, 0.5), (1, 2, 0.5), (1, 3, 0.75), (2, 3, 1.0)]
    keys = ("nxm/phase", "nxm/iterations", "nxm/mask_similarity")
    history = [{"eval_loss": 1.0}, *(dict(zip(keys, entry, strict=True)) for entry in logged)]
    assert similarities(history) == [0.5, 0.75]
    for entry in history:
        entry.pop("nxm/iterations", None)
    assert similarities(history) == [1.0, 1.0, 0.5, 0.5, 0.75]


def test_writers_on_one_file_lose_no_line(tmp_path):
    path = tmp_path / "results.jsonl"

    def write(writer: int) -> None:
        results = RecordFile(path)
        for number in range(15):
            results.add({"name": f"{writer}-{number}", "long": "x" * 5000})

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert len(RecordFile(path).records) == 60 and path.read_text().count("\n") == 60


def test_a_line_that_another_is_writing_is_waited_for_and_not_cut_off(tmp_path):
    results = RecordFile(tmp_path / "results.jsonl")
    line = json.dumps({"name": "theirs"}) + "\n"
    other = FileLock(results.lock, thread_local=False)
    other.acquire()
    ours = threading.Thread(target=results.add, args=({"name": "ours"},))
    with results.path.open("a") as file:
        file.write(line[:9])
        file.flush()
        ours.start()
        ours.join(0.2)
        file.write(line[9:])
    other.release()
    ours.join()
    assert list(RecordFile(results.path).records) == ["theirs", "ours"]


def test_lines_with_spaces_are_read_and_new_ones_have_none(tmp_path):
    path = tmp_path / "results.jsonl"
    old = {"name": "old", "predictions": [0, 1]}
    path.write_text(json.dumps(old) + "\n")
    RecordFile(path).add({"name": "new", "predictions": [1, 0]})
    assert path.read_text().splitlines()[1] == '{"name":"new","predictions":[1,0]}'
    assert RecordFile(path).records["old"] == old
