"""The record: what a saved sparse model says of itself, beside the config that it was made with."""

import json

import pytest

from nxm_hf import NxMConfig, SparsityRecord, __version__

CONFIG = NxMConfig("ste", "1:4", settle=0.5)
RECORDS = [
    SparsityRecord(CONFIG, {"a.b": "1:4"}, 0.25),
    SparsityRecord(CONFIG, {"a.b": "1:4", "c": "2:4"}, 0.375, {"method": "wanda"}, "0.0.1"),
    SparsityRecord(CONFIG, {}, 1.0),
]


@pytest.mark.parametrize("record", RECORDS, ids=["trained", "pruned", "empty"])
def test_a_record_comes_back_from_a_dict_and_from_a_directory(record, tmp_path):
    assert SparsityRecord.from_dict(record.to_dict()) == record
    assert SparsityRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    record.save_pretrained(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["nxm_config.json"]
    assert SparsityRecord.from_pretrained(tmp_path / "new") == record
    assert NxMConfig.from_pretrained(tmp_path / "new") == CONFIG


def test_a_record_names_the_version_that_wrote_it():
    assert RECORDS[0].nxm_version == __version__ and list(RECORDS[0].to_dict())[-1] == "nxm_version"


def test_a_config_alone_is_no_record(tmp_path):
    assert SparsityRecord.from_dict(CONFIG.to_dict()) is None
    CONFIG.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no record of being sparse: .* no nxm_config\.json that"):
        SparsityRecord.from_pretrained(tmp_path)


@pytest.mark.parametrize("layers", [["a.b"], {"a.b": None}, "2:4", 3])
def test_layers_of_another_form_are_an_error(layers):
    with pytest.raises(ValueError, match=r"layers must be like .*Save the model again\."):
        SparsityRecord.from_dict({**CONFIG.to_dict(), "layers": layers})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("density", "half"),
        ("density", 10**400),
        ("density", True),
        ("density", -0.5),
        ("pruning", "alps"),
        ("pruning", {"settings": {}}),
        ("nxm_version", 5),
        ("layers", {"layer\x1b[2J": "2:4"}),
        ("layers", {"layer\nok": "2:4"}),
    ],
)
def test_a_value_of_a_stranger_that_no_reader_takes_is_refused_in_a_sentence(key, value):
    payload = SparsityRecord(NxMConfig("asp"), {"layer.0": "2:4"}, 0.5).to_dict()
    with pytest.raises(ValueError, match=rf"^{key} (must be|names) .* Save the model again\.$"):
        SparsityRecord.from_dict({**payload, key: value})


@pytest.mark.parametrize(
    "change",
    [{"x" * 10**5: 1}, {"recipe": "x" * 10**5}, {"include": [["x" * 10**5]]}, {"pattern": "x" * 10**5}],
    ids=lambda change: min(change, key=len)[:10],
)
def test_a_message_about_a_record_stays_short_whatever_its_keys_and_values_are(change):
    payload = SparsityRecord(NxMConfig("asp"), {"layer.0": "2:4"}, 0.5).to_dict()
    with pytest.raises(ValueError) as error:
        SparsityRecord.from_dict({**payload, **change})
    assert 20 < len(str(error.value)) < 1100
