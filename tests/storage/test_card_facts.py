"""What the card says and the files do not tell."""

from types import SimpleNamespace

from datasets import Dataset, DatasetInfo
from torch import nn

from nxm_hf.storage.card_facts import CardFacts, DataFacts, base_model_of, metrics_of
from tests.support.models import make_bert


def test_rows_of_the_hub_are_named_as_there_and_rows_of_a_file_have_no_name():
    info = DatasetInfo(builder_name="glue", config_name="sst2", download_checksums={"hf://datasets/a/glue@1/x": {}})
    rows = Dataset.from_dict({"text": ["a", "b"]})
    assert DataFacts.of(Dataset(rows.data, info=info, split="train")) == DataFacts("a/glue", "sst2", "train", 2)
    old = DatasetInfo(builder_name="glue", config_name="sst2")
    assert DataFacts.of(Dataset(rows.data, info=old)) == DataFacts("glue", "sst2", None, 2)
    files = DatasetInfo(builder_name="csv", config_name="default-1234")
    assert DataFacts.of(Dataset(rows.data, info=files)) == DataFacts(rows=2)
    unnamed = DatasetInfo(config_name="mine")
    assert DataFacts.of(Dataset(rows.data, info=unnamed)) == DataFacts(rows=2)
    assert DataFacts.of(SimpleNamespace(info="of another library", split="train")) == DataFacts()
    assert DataFacts.of([1, 2, 3]) == DataFacts(rows=3)
    assert DataFacts.of(iter([1])) == DataFacts.of(None) == DataFacts()


def test_a_base_model_is_a_name_on_the_hub_and_never_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    model = make_bert()
    names = ["", str(tmp_path), "./bert", "out/bert", "out", "gpt2", "google-bert/bert-base-uncased"]
    found = []
    for model.config._name_or_path in names:
        found.append(base_model_of(model))
    assert found == [None] * 5 + names[5:]
    assert base_model_of(nn.Linear(1, 1)) is None


def test_metrics_of_speed_and_of_other_kinds_are_left_out():
    record = {"eval_f1": 1, "eval_a_accuracy": 0.5, "eval_samples_per_second": 3.0, "eval_note": "x", "loss": 1.0}
    assert metrics_of(record) == {"f1": 1.0, "a_accuracy": 0.5}
    assert CardFacts() == CardFacts(base_model=None, datasets=(), evaluations={}, new_weights=False)
