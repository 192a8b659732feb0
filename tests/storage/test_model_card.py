"""The model card: metadata for the Hub, one section of ours, and the user's own words."""

import re

import pytest
from datasets import Dataset, DatasetInfo
from huggingface_hub import EvalResult, ModelCard

from nxm_hf import prune
from nxm_hf.storage.card_facts import CardFacts, DataFacts
from nxm_hf.storage.card_text import HOME
from nxm_hf.storage.model_card import write_card
from nxm_hf.storage.model_record import read_record
from nxm_hf.storage.packed_directory import pack_directory, unpack_directory
from nxm_hf.storage.verify import verify
from tests.support.models import make_bert, make_rows
from tests.support.saving import train_two_steps
from tests.support.training import KINDS, make_12_step_trainer

SST2 = DataFacts("nyu-mll/glue", "sst2", "validation", 16)


def accuracy(predicted):
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def card_of(folder) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def results_of(folder) -> dict[str, float]:
    return {result.metric_type: result.metric_value for result in card_of(folder).data.eval_results or []}


def write(folder, facts=None):
    """Write the card of a pruned model, and return it."""
    model = make_bert()
    prune(model, "2:4")
    write_card(folder, read_record(model), verify(model), facts)
    return card_of(folder)


def glue_rows() -> Dataset:
    """Return rows that know where they come from, as `load_dataset` makes them."""
    checksums = {"hf://datasets/nyu-mll/glue@bcdc/sst2/validation-0.parquet": {"num_bytes": 1, "checksum": None}}
    info = DatasetInfo(builder_name="glue", config_name="sst2", download_checksums=checksums)
    columns = {name: [row[name] for row in make_rows()] for name in make_rows()[0]}
    return Dataset(Dataset.from_dict(columns).data, info=info, split="validation").with_format("torch")


def test_the_section_of_the_card_is_replaced_and_the_users_words_stay(tmp_path):
    trainer = train_two_steps(tmp_path / "run")
    path = tmp_path / "end" / "README.md"
    path.parent.mkdir()
    path.write_text("---\nlicense: mit\ntags:\n- mine\n---\n\n# My model\n\nBefore.\n")
    trainer.save_model(path.parent)
    path.write_text(path.read_text() + "\nAfter.\n")
    once = path.read_text()
    trainer.save_model(path.parent)
    trainer.save_model(path.parent)
    assert path.read_text().split() == once.split()
    card = ModelCard.load(path)
    assert card.data.license == "mit" and card.data.tags == ["mine", "nxm-hf"]
    assert card.text.count("## Sparsity") == 1
    assert card.text.index("Before.") < card.text.index("## Sparsity") < card.text.index("After.")


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_has_the_metadata_of_the_hub_and_its_last_evaluation(kind, tmp_path):
    changes = dict(save_strategy="no", max_steps=2, train_dataset=glue_rows(), eval_dataset=glue_rows())
    trainer = make_12_step_trainer(tmp_path, "ste", kind, compute_metrics=accuracy, **changes)
    trainer.model.config._name_or_path = "google-bert/bert-base-uncased"
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(tmp_path / "end")
    data = card_of(tmp_path / "end").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", ["nyu-mll/glue"])
    expected = {"accuracy": metrics["eval_accuracy"], "loss": metrics["eval_loss"]}
    assert results_of(tmp_path / "end") == pytest.approx(expected)
    (result, _) = data.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "sst2", "validation")
    assert result.task_type == "text-classification" and data.model_name == "end"


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_of_the_saved_weights_and_of_no_others(kind, tmp_path):
    trainer = make_12_step_trainer(
        tmp_path, "ste", kind, compute_metrics=accuracy, max_steps=4, save_steps=1, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    logged = {r["step"]: r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r}
    for step in (1, 2, 3, 4):
        found = results_of(tmp_path / f"checkpoint-{step}")
        assert found.get("loss") == pytest.approx(logged.get(step)), step
    trainer.save_model(tmp_path / "end")
    assert results_of(tmp_path / "end")["loss"] == logged[4]
    trainer.train()  # to the end again, in the same directory
    trainer.save_model(tmp_path / "end")
    again = [r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r]
    assert again[-1] != logged[4] and results_of(tmp_path / "end")["loss"] == again[-1]


def test_the_card_in_the_output_directory_keeps_the_section_when_a_plain_trainer_makes_it_anew(tmp_path):
    trainer = make_12_step_trainer(tmp_path, "ste", "NxMCallback", save_strategy="no", max_steps=2)
    trainer.train()
    trainer.save_model()
    for _ in range(2):
        trainer.create_model_card(license="mit")
        card = card_of(tmp_path)
        assert card.text.count("## Sparsity") == 1 and "## Training procedure" in card.text
        assert card.data.license == "mit" and "nxm-hf" in card.data.tags


def test_results_of_others_stay_and_ours_of_other_weights_go(tmp_path):
    theirs = dict(task_type="text-classification", dataset_name="b", metric_type="f1", metric_value=0.5)
    card = ModelCard("---\nlicense: mit\n---\n# Mine\n")
    card.data["eval_results"] = [
        EvalResult(dataset_type="imdb", **theirs),
        EvalResult(dataset_type="glue", dataset_config="sst2", dataset_split="validation", **theirs),
    ]
    card.data["model_name"], card.data["pipeline_tag"] = "mine", "text-classification"
    card.save(tmp_path / "README.md")
    data = write(tmp_path, CardFacts(evaluations={SST2: {"f1": 0.25}})).data
    assert [(r.dataset_type, r.metric_value) for r in data.eval_results] == [("imdb", 0.5), ("nyu-mll/glue", 0.25)]
    assert [r.source_url for r in data.eval_results] == [None, HOME], "who has measured it is told"
    assert data.model_name == "mine"
    assert results_of(tmp_path) == {"f1": 0.25}
    data = write(tmp_path).data
    assert len(data.eval_results) == 2
    data = write(tmp_path, CardFacts()).data
    assert [r.dataset_type for r in data.eval_results] == ["imdb"]
    data = write(tmp_path, CardFacts("me/dense", new_weights=True)).data
    assert data.eval_results is None and data.base_model == "me/dense" and data.license == "mit"


def test_ours_replaces_a_result_that_agrees_in_all_things_but_the_owner_of_the_dataset(tmp_path):
    same = dict(task_type="text-classification", dataset_type="nyu-mll/glue", dataset_config="sst2")
    same |= dict(dataset_split="validation", metric_type="f1", dataset_name="b", metric_value=0.5)
    changes = [{}, {"dataset_type": "GLUE"}, {"dataset_type": "me/glue"}]
    others = dict(task_type="other", dataset_type="me/super_glue", dataset_config="cola", metric_type="accuracy")
    others |= dict(dataset_split="test")
    for number, change in enumerate([*changes, *({name: value} for name, value in others.items())]):
        folder = tmp_path / str(number)
        folder.mkdir()
        card = ModelCard("---\npipeline_tag: text-classification\n---\n# Mine\n")
        card.data["eval_results"], card.data["model_name"] = [EvalResult(**{**same, **change})], "mine"
        card.save(folder / "README.md")
        results = write(folder, CardFacts(evaluations={SST2: {"f1": 0.25}})).data.eval_results
        assert [result.metric_value for result in results] == ([0.25] if number < len(changes) else [0.5, 0.25]), change


def test_a_card_without_results_names_no_model(tmp_path):
    """The name stands beside results alone."""
    (tmp_path / "README.md").write_text("---\npipeline_tag: text-classification\n---\n")
    for facts, named in ((CardFacts(evaluations={SST2: {"f1": 0.25}}), True), (CardFacts(), False)):
        assert (write(tmp_path, facts).data.model_name is not None) == named
        text = (tmp_path / "README.md").read_text()
        assert ("model-index" in text) == named and "model_name" not in text


@pytest.mark.parametrize("before", [None, "---\nlicense: mit\n---\n\n# Mine\n\n\nBefore.\n\n\n"])
def test_a_card_that_is_written_again_is_the_same_to_the_byte(before, tmp_path):
    path, facts = tmp_path / "README.md", CardFacts("me/dense", ("imdb",), {SST2: {"f1": 0.25}})
    if before is not None:
        path.write_text(before)
    write(tmp_path, facts)
    path.write_text(path.read_text() + "\n\n\nAfter.\n")
    write(tmp_path, facts)
    text = path.read_text()
    assert text.count("After.") == 1 and text.count("Before.") == (before is not None)
    write(tmp_path, facts)
    assert path.read_text() == text


def test_metadata_that_is_no_metadata_does_not_keep_a_model_from_being_saved(tmp_path):
    (tmp_path / "README.md").write_text("---\nmodel-index:\n- name: mine\n  results: 5\n---\n# Mine\n")
    assert write(tmp_path, CardFacts("me/dense")).data.base_model == "me/dense"


@pytest.mark.parametrize("present", ["me/earlier", None])
@pytest.mark.parametrize("new_weights", [False, True])
@pytest.mark.parametrize("base", ["me/dense", None])
def test_the_base_model_of_a_card_is_replaced_by_that_of_new_weights_alone(base, new_weights, present, tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n" if present is None else f"---\nbase_model: {present}\n---\n")
    found = write(tmp_path, CardFacts(base, new_weights=new_weights)).data.base_model
    assert found == (base if base and (new_weights or not present) else present)


def test_what_the_user_wrote_of_the_model_is_not_changed(tmp_path):
    (tmp_path / "README.md").write_text("---\nlibrary_name: other\nbase_model: me/mine\ndatasets: imdb\n---\n")
    data = write(tmp_path, CardFacts("me/dense", ("imdb", "sst2"))).data
    assert (data.library_name, data.base_model, data.datasets) == ("other", "me/mine", ["imdb", "sst2"])


def test_packing_and_unpacking_keep_the_results(tmp_path):
    trainer = train_two_steps(tmp_path / "run", compute_metrics=accuracy)
    trainer.evaluate()
    trainer.save_model(tmp_path / "a")
    pack_directory(tmp_path / "a", tmp_path / "b")
    unpack_directory(tmp_path / "b", tmp_path / "c")
    assert results_of(tmp_path / "a") == results_of(tmp_path / "b") == results_of(tmp_path / "c") != {}
    assert card_of(tmp_path / "b").data.pipeline_tag == "text-classification"


def test_the_python_of_the_card_runs_and_keeps_the_zeros(tmp_path):
    train_two_steps(tmp_path / "run").save_model(tmp_path / "end")
    from tests.support.models import make_arguments

    rows = make_rows()
    names = {"rows": rows, "args": make_arguments(tmp_path / "more", max_steps=1, report_to="none")}
    text = card_of(tmp_path / "end").text.replace("DIRECTORY_OR_NAME", str(tmp_path / "end"))
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    exec(blocks[0], names)
    exec(blocks[2], names)
    names["trainer"].train()
    assert verify(names["model"]).ok and verify(names["model"]).density == 0.5
    callback = re.search(r"`callbacks=(\[NxMCallback\(.*\])`", text)[1]
    exec("from nxm_hf import NxMCallback, NxMConfig", names)
    assert eval(callback, names)[0].config.pattern == "2:4"
    exec(blocks[1].replace("length=128", "length=8"), names)
