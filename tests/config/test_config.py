"""The config: a wrong word is an error in the constructor; a right one survives a file and a command line."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from transformers import HfArgumentParser, TrainingArguments

from nxm_hf import NxMConfig, __version__, recipes
from nxm_hf.layers.find import GROUPS, ROLES
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, Constant
from nxm_hf.patterns import NM, PATTERNS

OWN = Masked(Constant(NM(2, 4)), freeze=ALWAYS)  # a method object, as a user may make one
PATTERN_TEXTS = [text for kind in PATTERNS for text in kind.examples]
CONFIGS = [
    NxMConfig("sr-ste", "4:8", {"decay": 1e-3}),
    NxMConfig("admm", settings={"rho": 0.01, "steps": 20, "dual": False}, warmup=0.1, settle=0.3),
    NxMConfig("admm", settings={"penalty": "decoupled", "contraction": 2.0}),
    NxMConfig("ste", {"ffn": "2:4", "query": "1:4", "default": "4:8"}, exclude=["key"]),
    NxMConfig("asp", include=["query", "ffn", r"re:layer\.0\."], on_indivisible="skip"),
]


# -- every wrong word --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "useful"),
    [
        ({"recipe": "srste"}, r"no recipe 'srste'. The catalogue has: .*sr-ste.* Write 'sr-ste'"),
        ({"recipe": "prune-it"}, "The catalogue has: dense, asp"),
        ({"pattern": "4:2"}, "2:4"),
        ({"pattern": "two of four"}, "The forms are, by example: '2:4'"),
        ({"pattern": '{"ffn": '}, r"pattern.*is not JSON"),
        ({"pattern": {"fnn": "2:4"}}, "'fnn'.*ffn_in.*attention, ffn.*default"),
        ({"pattern": {"ffn": "4:2"}}, "2:4"),
        ({"pattern": {}}, "names no pattern"),
        ({"settings": {"roh": 0.01}}, "has the settings rho, steps.*got 'roh'"),
        ({"recipe": "dense", "settings": {"rho": 1}}, "'dense' has no settings; got 'rho'"),
        ({"settings": {"rho": -1}}, "rho of admm must be a number of at least 0; got -1"),
        ({"settings": {"rho": True}}, "rho of admm must be a number of at least 0; got True"),
        ({"settings": {"rho": float("nan")}}, "rho of admm must be a number of at least 0; got nan"),
        ({"settings": {"rho": "0.01"}}, "rho of admm must be a number of at least 0; got '0.01'"),
        ({"settings": {"steps": 0}}, "at least 1; got 0"),
        ({"settings": {"steps": "often"}}, "must be one of 'auto', 'epoch'; got 'often'"),
        ({"settings": {"penalty": "loose"}}, "'coupled', 'decoupled'; got 'loose'"),
        ({"settings": {"start": "D"}}, "'C', 'A', 'B'; got 'D'"),
        ({"settings": {"penalty": "decoupled", "rho": 0.1}}, "set contraction=1.0 instead"),
        ({"settings": {"contraction": 0.5}}, "set rho instead"),
        ({"settings": "rho=0.01"}, r'a dict such as \{"rho": 0.01\}'),
        ({"settings": '{"rho": 0.01'}, r"settings.*is not JSON"),
        ({"settings": [1]}, r'a dict such as \{"rho": 0.01\}'),
        ({"recipe": "asp", "settings": {"scores": "random"}}, "one of 'magnitude'"),
        ({"recipe": "ste", "settings": {"refresh": 1.5}}, "whole number of at least 1; got 1.5"),
        ({"on_indivisible": "pad"}, '"error" or "skip"; got \'pad\''),
        ({"warmup": -0.1}, "warmup is a fraction.*got -0.1"),
        ({"settle": 1}, "settle is a fraction.*got 1"),
        ({"settle": "0.3"}, "settle is a fraction.*got '0.3'"),
        ({"warmup": 0.5, "settle": 0.5}, "leave no step for the recipe.*Write warmup=0.1, settle=0.3"),
        ({"recipe": OWN, "settings": {"rho": 1}}, "A method object has its settings in it"),
    ],
    ids=str,
)
def test_a_wrong_word_is_an_error_that_says_what_to_type(words, useful):
    with pytest.raises(ValueError, match=useful) as error:
        NxMConfig(**words)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("recipe", recipes.names())
def test_every_recipe_names_its_settings_when_one_is_wrong(recipe):
    with pytest.raises(ValueError, match="got 'no_such'") as error:
        NxMConfig(recipe, settings={"no_such": 1})
    assert all(name in str(error.value) for name in recipes.settings(recipe))


@pytest.mark.parametrize("given", [5, object(), ["admm"]], ids=["int", "object", "list"])
def test_what_is_no_sparsity_is_an_error(given):
    with pytest.raises(TypeError, match='a recipe such as "admm"'):
        NxMConfig.from_any(given)


@pytest.mark.parametrize("where", ["include", "exclude"])
def test_an_entry_of_include_and_exclude_is_text(where):
    with pytest.raises((TypeError, ValueError), match=f"{where}.*got 3"):
        NxMConfig(**{where: [3]})


# -- every right one ---------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_contract():
    config = NxMConfig()
    assert (config.recipe, config.pattern, config.settings) == ("admm", "2:4", {})
    assert (config.include, config.exclude, config.on_indivisible) == (None, None, "error")
    assert (config.warmup, config.settle) == (0.0, 0.0)


@pytest.mark.parametrize("recipe", recipes.names())
def test_a_recipe_takes_hyphens_and_underscores_and_its_own_defaults(recipe):
    one = NxMConfig(recipe, settings=recipes.settings(recipe))
    assert NxMConfig(recipe.replace("-", "_"), settings=recipes.settings(recipe)) == one
    assert one.recipe == recipe
    assert one.method(NM(2, 4)) == NxMConfig(recipe).method(NM(2, 4))


@pytest.mark.parametrize("text", [*PATTERN_TEXTS, "4x2", " 2:4 ", "2:4-Transposable"])
def test_a_pattern_is_printed_in_the_words_of_this_library(text):
    """Pitfall 9: "4x2" of the NxMTransformer paper and "2:4" are one pattern, so one word in the file."""
    config = NxMConfig("dense", text)
    (pattern,) = config.patterns().values()
    assert config.pattern == str(pattern)
    assert NxMConfig("dense", pattern) == config  # the object says the same as its text
    assert NxMConfig("dense", {"default": pattern}) == NxMConfig("dense", {"default": text})
    json.loads(NxMConfig("dense", {"default": pattern}).to_json_string())


@pytest.mark.parametrize("key", [*ROLES, *GROUPS, "default"])
def test_a_pattern_may_be_a_mapping_by_any_role_or_group(key):
    assert NxMConfig("asp", {key: "1:4"}).patterns() == {key: NM(1, 4)}


def test_a_word_for_include_is_a_list_of_one():
    assert NxMConfig(include="ffn", exclude="key") == NxMConfig(include=["ffn"], exclude=("key",))


def test_a_user_may_give_a_config_a_name_a_dict_or_a_method():
    config = NxMConfig("sr-ste", settings={"decay": 0.1})
    assert NxMConfig.from_any(config) == config and NxMConfig.from_any(config) is not config
    assert NxMConfig.from_any("sr_ste") == NxMConfig("sr-ste")
    assert NxMConfig.from_any({"recipe": "sr_ste", "settings": {"decay": 0.1}}) == config
    assert NxMConfig.from_any(OWN).recipe is OWN


def test_a_config_changes_nothing_of_what_it_was_given():
    settings, pattern, include = {"rho": 0.1}, {"ffn": "2:4"}, ["ffn"]
    config = NxMConfig("admm", pattern, settings, include)
    config.settings["rho"] = config.pattern["ffn"] = 1
    config.include.append("query")
    assert (settings, pattern, include) == ({"rho": 0.1}, {"ffn": "2:4"}, ["ffn"])


def test_only_the_recipe_dense_and_the_pattern_dense_are_dense():
    assert NxMConfig("dense").is_dense and NxMConfig("admm", "dense").is_dense
    assert NxMConfig("admm", {"default": "dense"}).is_dense
    assert not NxMConfig("asp", {"ffn": "2:4", "default": "dense"}).is_dense
    assert not any(NxMConfig(name).is_dense for name in recipes.names() if name != "dense")


# -- files -------------------------------------------------------------------------------------------------------------


ALL_CONFIGS = [
    *CONFIGS,
    *(NxMConfig(name, settings=recipes.settings(name), warmup=0.1, settle=0.2) for name in recipes.names()),
    *(NxMConfig("ste", text) for text in PATTERN_TEXTS),
]


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=lambda config: f"{config.recipe} {config.pattern}")
def test_a_config_comes_back_from_a_dict_from_json_and_from_a_directory(config, tmp_path):
    assert NxMConfig.from_dict(config.to_dict()) == config
    assert NxMConfig.from_dict(json.loads(config.to_json_string())) == config
    config.save_pretrained(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["nxm_config.json"]
    assert NxMConfig.from_pretrained(tmp_path / "new") == config == NxMConfig.from_pretrained(str(tmp_path / "new"))


def test_the_file_also_records_layers_density_and_version(tmp_path):
    config = NxMConfig("asp")
    assert config.nxm_version == __version__
    config.layers, config.density, config.nxm_version = {"a.b": "2:4"}, 0.5, "0.0.1"
    config.save_pretrained(tmp_path)
    again = NxMConfig.from_pretrained(tmp_path)
    assert (again.layers, again.density, again.nxm_version) == ({"a.b": "2:4"}, 0.5, "0.0.1")
    assert again.to_dict() == config.to_dict()


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

    def commit(self, repo_id, operations, **kwargs):
        uploads.append((repo_id, {file.path_in_repo: Path(file.path_or_fileobj).read_text() for file in operations}))

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/sparse"))
    monkeypatch.setattr(HfApi, "create_commit", commit)
    config = NxMConfig("ste", "1:4")
    if way == "method":
        config.push_to_hub("me/sparse")
    else:
        config.save_pretrained(tmp_path / "sparse", push_to_hub=True, repo_id="me/sparse")
    ((repo, files),) = uploads
    assert repo == "me/sparse" and files["nxm_config.json"] == config.to_json_string()
    assert set(files) <= {"nxm_config.json", "README.md"}  # a card that transformers makes where there is none


# -- the command line --------------------------------------------------------------------------------------------------


def _parse(*words):
    (config,) = HfArgumentParser(NxMConfig).parse_args_into_dataclasses(list(words))
    return config


def test_the_command_line_says_all_that_the_constructor_does():
    words = ["--recipe", "admm", "--settings", '{"rho": 0.01}', "--include", "query", "ffn", "--exclude", "ffn_out"]
    words += ["--pattern", '{"ffn": "2:4", "default": "4:8"}', "--on_indivisible", "skip"]
    words += ["--warmup", "0.1", "--settle", "0.3"]
    assert _parse(*words) == NxMConfig(
        pattern={"ffn": "2:4", "default": "4:8"},
        settings={"rho": 0.01},
        include=["query", "ffn"],
        exclude=["ffn_out"],
        on_indivisible="skip",
        warmup=0.1,
        settle=0.3,
    )


def test_an_empty_command_line_gives_the_defaults_and_plain_words_are_plain():
    assert _parse() == NxMConfig()
    assert _parse("--pattern", "1:4", "--recipe", "sr_ste").to_dict() == NxMConfig("sr-ste", "1:4").to_dict()


def test_the_command_line_stands_beside_training_arguments(tmp_path):
    words = ["--output_dir", str(tmp_path), "--max_steps", "3", "--settle", "0.5"]
    arguments, config = HfArgumentParser((TrainingArguments, NxMConfig)).parse_args_into_dataclasses(words)
    assert (arguments.max_steps, config.settle) == (3, 0.5)


def test_a_json_file_gives_the_config_too(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"recipe": "ste", "pattern": "1:4", "settings": {"refresh": 2}}))
    (config,) = HfArgumentParser(NxMConfig).parse_json_file(str(path))
    assert config == NxMConfig("ste", "1:4", {"refresh": 2})


def test_every_field_of_the_constructor_has_a_help_text():
    fields = [field for field in dataclasses.fields(NxMConfig) if field.init]
    assert len(fields) == 8 and all(field.metadata["help"].endswith(".") for field in fields)
    help_text = HfArgumentParser(NxMConfig).format_help()
    assert all(f"--{field.name}" in help_text for field in fields)
    assert not any(f"--{name}" in help_text for name in ("layers", "density", "nxm_version"))


# -- changing it -------------------------------------------------------------------------------------------------------


def test_changes_go_to_settings_and_fields_by_their_names():
    config = NxMConfig("admm", settings={"dual": False}, warmup=0.1).replace(rho=0.5, settle=0.2, pattern="1:4")
    assert config == NxMConfig("admm", "1:4", {"dual": False, "rho": 0.5}, warmup=0.1, settle=0.2)
    assert NxMConfig("admm").replace(recipe="sr_ste", decay=0.1) == NxMConfig("sr-ste", settings={"decay": 0.1})


def test_a_change_that_is_neither_lists_both():
    with pytest.raises(ValueError, match=r"no 'roh' to set; the recipe 'admm' has rho, steps.*the config has.*settle"):
        NxMConfig("admm").replace(roh=0.1)


def test_a_method_object_has_only_the_fields_to_change():
    assert NxMConfig(OWN).replace(warmup=0.1).warmup == 0.1
    with pytest.raises(ValueError, match=r"no 'rho' to set.*no settings.*the config has"):
        NxMConfig(OWN).replace(rho=0.1)
