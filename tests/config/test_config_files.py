"""The config in files: it comes back as it was written, and a file of a newer version is refused by name."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from transformers.utils import hub

from nxm_hf import NxMConfig, recipes
from nxm_hf.config.hub import model_folder
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, Constant
from nxm_hf.patterns import NM, PATTERNS
from tests.support.grids import RECIPES

OWN = Masked(Constant(NM(2, 4)), freeze=ALWAYS)  # a method object, as a user may make one
PATTERN_TEXTS = [text for kind in PATTERNS for text in kind.examples]
CONFIGS = [
    NxMConfig("sr-ste", "4:8", {"decay": 1e-3}),
    NxMConfig("admm", settings={"rho": 0.01, "steps": 20, "dual": False}, warmup=0.1, settle=0.3),
    NxMConfig("admm", settings={"penalty": "decoupled", "contraction": 2.0}),
    NxMConfig("ste", {"ffn": "2:4", "query": "1:4", "default": "4:8"}, exclude=["key"]),
    NxMConfig("asp", include=["query", "ffn", r"re:layer\.0\."], on_indivisible="skip"),
]
ALL_CONFIGS = [
    *CONFIGS,
    *(NxMConfig(name, settings=recipes.settings(name), warmup=0.1, settle=0.2) for name in RECIPES),
    *(NxMConfig("ste", text) for text in PATTERN_TEXTS),
]


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=lambda config: f"{config.recipe} {config.pattern}")
def test_a_config_comes_back_from_a_dict_from_json_and_from_a_directory(config, tmp_path):
    assert NxMConfig.from_dict(config.to_dict()) == config
    assert NxMConfig.from_dict(json.loads(config.to_json_string())) == config
    config.save_pretrained(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["nxm_config.json"]
    assert NxMConfig.from_pretrained(tmp_path / "new") == config == NxMConfig.from_pretrained(str(tmp_path / "new"))


def test_a_method_object_is_recorded_as_what_it_was_and_read_back_as_a_mask_to_keep():
    config = NxMConfig(OWN, settle=0.2)
    words = json.loads(config.to_json_string())
    assert words["recipe"] == "custom" and words["settings"] == {"method": repr(OWN)}
    again = NxMConfig.from_dict(words)
    assert (again.recipe, again.settings, again.settle) == ("asp", {}, 0.2)


def test_keys_of_a_newer_version_are_named(tmp_path):
    words = {**NxMConfig().to_dict(), "nxm_version": "9.9", "teacher": "x", "blocks": 2}
    with pytest.raises(ValueError, match=r"does not know 'blocks', 'teacher' \(written by version 9.9\).*newer nxm-hf"):
        NxMConfig.from_dict(words)
    (tmp_path / "nxm_config.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match="'blocks', 'teacher'"):
        NxMConfig.from_pretrained(tmp_path)


def test_the_stamp_in_a_models_own_config_stands_in_for_the_file(tmp_path):
    config = NxMConfig("ste", "1:4")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "nxm_config": config.to_dict()}))
    assert NxMConfig.from_pretrained(tmp_path) == config
    NxMConfig("asp").save_pretrained(tmp_path)  # and the file comes first
    assert NxMConfig.from_pretrained(tmp_path) == NxMConfig("asp")


def test_a_directory_without_a_config_is_an_error_that_says_who_writes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"NxMTrainer\.save_model"):
        NxMConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"NxMTrainer\.save_model"):
        NxMConfig.from_pretrained(tmp_path)


def test_a_file_that_is_no_json_is_an_error_that_names_it(tmp_path):
    (tmp_path / "nxm_config.json").write_text("{torn")
    with pytest.raises(ValueError, match=r"nxm_config.json is not JSON.*restore the file"):
        NxMConfig.from_pretrained(tmp_path)


def test_a_place_that_is_neither_a_directory_nor_a_repository_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a directory nor a Hub repository"):
        NxMConfig.from_pretrained(tmp_path / "not" / "there")


@pytest.mark.parametrize("way", ["method", "argument"])
def test_a_config_is_pushed_as_its_one_file(way, tmp_path, monkeypatch):
    uploads = []

    def commit(repo_id, operations, **kwargs):
        uploads.append((repo_id, {file.path_in_repo: Path(file.path_or_fileobj).read_text() for file in operations}))

    def create(*args, **kwargs):
        return SimpleNamespace(repo_id="me/sparse")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "create_commit", lambda self, *args, **kwargs: commit(*args, **kwargs))
    if hasattr(hub, "create_commit"):  # older transformers
        monkeypatch.setattr(hub, "create_repo", create)
        monkeypatch.setattr(hub, "create_commit", commit)
    config = NxMConfig("ste", "1:4")
    if way == "method":
        config.push_to_hub("me/sparse")
    else:
        config.save_pretrained(tmp_path / "sparse", push_to_hub=True, repo_id="me/sparse")
    ((repo, files),) = uploads
    assert repo == "me/sparse" and files["nxm_config.json"] == config.to_json_string()
    assert set(files) <= {"nxm_config.json", "README.md"}  # a card that transformers makes where there is none


WRITTEN = {"recipe": "sr-ste", "pattern": {"ffn": "2:4", "default": "4:8"}, "settings": {"decay": 0.001}, "settle": 0.2}
YAML = "recipe: sr_ste\npattern: {ffn: '2:4', default: '4:8'}\nsettings:\n  decay: 0.001\nsettle: 0.2\n"


@pytest.mark.parametrize("name", ["sparsity.json", "sparsity.yaml", "sparsity.yml"])
@pytest.mark.parametrize("as_path", [False, True], ids=["text", "path"])
def test_a_config_is_read_from_a_file_that_a_user_wrote(name, as_path, tmp_path):
    path = tmp_path / name
    path.write_text(json.dumps(WRITTEN) if name.endswith("json") else YAML)
    assert NxMConfig.from_any(path if as_path else str(path)) == NxMConfig(**WRITTEN)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("2:4", NxMConfig(pattern="2:4")),
        (" 1:4 ", NxMConfig(pattern="1:4")),
        ("4x2", NxMConfig(pattern="2:4")),
        ("unstructured:0.25", NxMConfig(pattern="unstructured:0.25")),
        ("2:4-transposable", NxMConfig(pattern="2:4-transposable")),
        ("SR_STE", NxMConfig("sr-ste")),
        ("dense", NxMConfig("dense")),
        (json.dumps(WRITTEN), NxMConfig(**WRITTEN)),
    ],
)
def test_a_text_is_a_recipe_a_pattern_or_json(text, config):
    assert NxMConfig.from_any(text) == config


@pytest.mark.parametrize(
    ("text", "error", "useful"),
    [
        ("4:2", ValueError, "2:4"),
        ("adm", ValueError, "Write 'admm'"),
        ("nowhere.yaml", FileNotFoundError, "There is no config file nowhere.yaml"),
        ("{recipe: admm}", ValueError, "is not JSON"),
        (7, TypeError, 'a pattern such as "2:4"'),
        (["2:4"], TypeError, "a JSON or YAML file"),
    ],
    ids=str,
)
def test_what_means_no_config_is_answered_with_what_to_write(text, error, useful):
    with pytest.raises(error, match=useful):
        NxMConfig.from_any(text)


@pytest.mark.parametrize(
    ("name", "text", "useful"),
    [
        ("list.yaml", "- 2:4\n", "holds a list; it must be a mapping"),
        ("blank.yaml", "", "blank.yaml is empty; it must be a mapping"),
        ("torn.json", '{"recipe": ', "cannot be read"),
        ("torn.yml", "recipe: [", "cannot be read"),
        ("typo.yaml", "recipes: admm\n", "does not know 'recipes'"),
    ],
)
def test_a_file_that_holds_no_config_is_named_in_the_error(name, text, useful, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=useful):
        NxMConfig.from_any(str(tmp_path / name))


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("folder", ["", "0_Transformer", "nested/0_Transformer"])
def test_the_model_in_a_directory_of_sentence_transformers_is_the_module_with_a_model_type(folder, tmp_path):
    modules = [{"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": folder}]
    write_json(tmp_path / "modules.json", modules)
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    write_json(tmp_path / "2_Dense" / "config.json", ["a list"])
    write_json(tmp_path / folder / "config.json", {"model_type": "bert", "nxm_config": CONFIGS[0].to_dict()})
    assert model_folder(tmp_path) == tmp_path / folder
    assert NxMConfig.from_pretrained(tmp_path) == CONFIGS[0]


@pytest.mark.parametrize("modules", [None, {"path": "0_Transformer"}, ["0_Transformer"], [{}], [{"path": "absent"}]])
def test_a_directory_whose_modules_name_no_model_is_taken_as_it_is(modules, tmp_path):
    write_json(tmp_path / "0_Transformer" / "config.json", {"model_type": "bert"})
    if modules is not None:
        write_json(tmp_path / "modules.json", modules)
    assert model_folder(tmp_path) == tmp_path
    (tmp_path / "modules.json").write_text("no JSON")
    assert model_folder(tmp_path) == tmp_path == model_folder(str(tmp_path))
