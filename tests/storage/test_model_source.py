"""Directories of models by name: here, or on the Hub, which no test can reach."""

from fnmatch import fnmatch

import pytest

from nxm_hf.config.hub import looks_like_path
from nxm_hf.storage import model_source
from nxm_hf.storage.model_source import existing_directory, model_directory


@pytest.mark.parametrize(
    "text",
    [
        "./bert",
        "/tmp/bert",
        "~/bert",
        "../bert",
        "out/a/b",
        "bert/",
        "texts.txt",
        "a/rows.jsonl",
        "texs.tx",
        "a b",
        "a\\b",
    ],
)
def test_a_text_that_has_the_form_of_a_path_is_one(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_like_path(text)
    with pytest.raises(FileNotFoundError, match=r"does not exist\.$"):
        model_directory(text)


@pytest.mark.parametrize("text", ["bert-base-uncased", "Qwen/Qwen2.5-0.5B", "nyu-mll/glue:rte", "wikitext"])
def test_a_text_that_has_the_form_of_a_name_on_the_hub_is_one(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_like_path(text)


def test_a_text_that_begins_with_a_folder_here_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_like_path("out/checkpoint-5")
    (tmp_path / "out").mkdir()
    assert looks_like_path("out/checkpoint-5")
    with pytest.raises(FileNotFoundError, match="out/checkpoint-5 does not exist"):
        model_directory("out/checkpoint-5")
    assert model_directory("out") == existing_directory("out") == "out"


@pytest.mark.parametrize("name", ["prajjwal1/bert-tiny", "no-such-model"])
def test_a_name_on_the_hub_without_a_network_is_one_clear_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as raised:
        model_directory(name)
    message = str(raised.value)
    assert message.startswith(f"{name} does not exist here, and it cannot be had from the Hub: ")
    assert message.count("\n") == 0 and message.endswith("Name a directory that save_pretrained wrote.")


def test_of_a_model_on_the_hub_its_configs_and_safe_weights_are_downloaded_and_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(model_source, "snapshot_download", lambda name, **how: asked.append((name, how)) or "there")
    assert model_directory("me/bert") == "there"
    [(name, how)] = asked
    wanted = {file: any(fnmatch(file, pattern) for pattern in how["allow_patterns"]) for file in FILES}
    assert name == "me/bert" and [*how] == ["allow_patterns"] and wanted == FILES


def test_of_an_error_of_the_hub_the_first_line_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(name, **how):
        raise OSError("\n  There is no me/bert.\nSee the manual.")

    monkeypatch.setattr(model_source, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"from the Hub: There is no me/bert\. Name a directory"):
        model_directory("me/bert")


FILES = {"config.json": True, "model-00001-of-00002.safetensors": True, "vocab.txt": True, "spiece.model": True}
FILES |= {"pytorch_model.bin": False, "modeling_mine.py": False, "tf_model.h5": False}


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(FileNotFoundError, match="model is a file; a directory is needed"):
        model_directory(str(tmp_path / "model"))
