"""The settings of a run: what another needs to repeat it."""

from nxm_hf.report import read_runs
from nxm_hf.report.settings_tables import environment_table, settings_of
from nxm_hf.report.training_page import training_page
from nxm_hf.storage.checkpoints import RUN_FILE
from tests.support.html_reader import Reader


def test_the_page_shows_model_data_optimizer_rate_batch_and_seed(made):
    _, *rows = Reader(training_page(read_runs([made["admm"], made["sr-ste"]]))).tables["Settings"]
    table = {row[0]: row[1:] for row in rows}
    for key in ("model: class", "data: rows", "optimizer: class", "training: learning_rate", "seed"):
        assert len(table[key]) == 2 and "-" not in table[key], key
    assert table["training: learning_rate"] == ["0.001", "0.001"] and table["sparsity: recipe"] == ["admm", "sr-ste"]
    versions = Reader(environment_table(read_runs([made["admm"]]))).tables[""]
    assert {"torch", "transformers", "Python", "device"} <= {row[0] for row in versions}


def test_the_phases_are_those_that_the_training_had(made):
    run = read_runs([made["rigl"]])[0]
    shown = settings_of(run)
    assert shown["sparsity: settle"] == "0.0"
    (fixed,) = read_runs([made["admm"]])
    fixed.config.update(recipe="fix", settings={})
    assert settings_of(fixed)["sparsity: settle"] == "0.5"


def test_a_run_of_before_shows_the_rate_of_its_log_and_says_what_is_missing(runs):
    (runs["admm"] / RUN_FILE).unlink()
    found = read_runs([runs["admm"]])
    assert settings_of(found[0])["training: highest learning rate in the log"].startswith("0.0009")
    assert "admm has no nxm_run.json" in training_page(found)
