"""The result of pruning: as a table, as JSON, and read from a directory."""

import json

import pytest

from nxm_hf import prune
from nxm_hf.pruning.result import RESULT_FILE, PruningResult
from tests.support.models import (
    make_batches,
    make_bert,
)

TEXTS = make_batches("bert", count=8, rows=4)


def test_the_outcome_prints_as_a_table_and_goes_into_json():
    outcome = prune(make_bert(), {"ffn": "2:4", "default": "4:8"}, "wanda", TEXTS)
    lines = str(outcome).splitlines()
    assert lines[0].split() == "layer role shape pattern density energy magnitude error".split()
    assert [line.split()[0] for line in lines[2:14]] == [row.name for row in outcome.layers]
    assert [line.split()[3] for line in lines[2:8]] == ["4:8"] * 4 + ["2:4"] * 2
    assert "12 layers by wanda, density 0.5000, mean error 0." in lines[14] and "232 tokens" in lines[14]
    payload = json.loads(json.dumps(outcome.to_dict()))
    assert payload["layers"][0]["error"] == outcome.layers[0].error and payload["method"] == "wanda"
    assert outcome.error == pytest.approx(sum(row.error for row in outcome.layers) / 12)


def test_a_result_is_read_as_it_was_saved(tmp_path):
    result = prune(make_bert(), "2:4", "wanda", TEXTS)
    result.save(tmp_path)
    assert PruningResult.read(tmp_path) == result


LAYER = dict(name="a", role="query", shape=[10**400, 32], pattern="2:4", density=0.5, kept_energy=0.9)
LAYER |= dict.fromkeys(["magnitude_error", "error", "tokens"])


@pytest.mark.parametrize("change", [{"format": 99}, {"layers": None}, {"unknown": 1}, {"layers": [LAYER]}])
def test_a_result_that_cannot_be_read_is_an_error_that_names_the_file(change, tmp_path):
    payload = prune(make_bert()).to_dict() | change
    (tmp_path / RESULT_FILE).write_text(json.dumps(payload))
    with pytest.raises(ValueError, match=rf"{RESULT_FILE} cannot be read .*Prune the model again"):
        PruningResult.read(tmp_path)
