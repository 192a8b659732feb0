"""The config: a wrong word is an error in the constructor, and a right one is kept."""

import json

import pytest

from nxm_hf import NxMConfig, recipes
from nxm_hf.layers.find import GROUPS, ROLES
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import ALWAYS, Constant
from nxm_hf.patterns import NM, PATTERNS
from tests.support.grids import RECIPES

OWN = Masked(Constant(NM(2, 4)), freeze=ALWAYS)  # a method object, as a user may make one
PATTERN_TEXTS = [text for kind in PATTERNS for text in kind.examples]


@pytest.mark.parametrize(
    ("words", "useful"),
    [
        ({"recipe": "srste"}, r"no recipe 'srste'. The catalogue has: .*sr-ste.* Write 'sr-ste'"),
        ({"recipe": "prune-it"}, "The catalogue has: dense, alps, asp"),
        ({"pattern": "4:2"}, "2:4"),
        ({"pattern": "two of four"}, "The forms are, by example: '2:4'"),
        ({"pattern": '{"ffn": '}, r"pattern.*is not JSON"),
        ({"pattern": {"fnn": "2:4"}}, "'fnn'.*ffn_in.*attention, ffn.*default"),
        ({"pattern": {"ffn": "4:2"}}, "2:4"),
        ({"pattern": {}}, "names no pattern"),
        ({"recipe": "admm", "settings": {"roh": 0.01}}, "has the settings rho, steps.*got 'roh'"),
        ({"recipe": "dense", "settings": {"rho": 1}}, "'dense' has no settings; got 'rho'"),
        ({"recipe": "admm", "settings": {"rho": -1}}, "rho of admm must be a number of at least 0; got -1"),
        ({"recipe": "admm", "settings": {"rho": True}}, "rho of admm must be a number of at least 0; got True"),
        ({"recipe": "admm", "settings": {"rho": float("nan")}}, "rho of admm must be a number of at least 0; got nan"),
        ({"recipe": "admm", "settings": {"rho": "0.01"}}, "rho of admm must be a number of at least 0; got '0.01'"),
        ({"recipe": "admm", "settings": {"steps": 0}}, "at least 1; got 0"),
        ({"recipe": "admm", "settings": {"steps": "often"}}, "must be one of 'auto', 'epoch'; got 'often'"),
        ({"recipe": "admm", "settings": {"penalty": "loose"}}, "'coupled', 'decoupled'; got 'loose'"),
        ({"recipe": "admm", "settings": {"start": "D"}}, "'auto', 'A', 'B', 'C'; got 'D'"),
        ({"recipe": "admm", "settings": {"penalty": "decoupled", "rho": 0.1}}, "set contraction=1.0 instead"),
        ({"recipe": "admm", "settings": {"contraction": 0.5}}, "set rho instead"),
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
        (
            {"recipe": OWN, "settings": {"rho": 1}},
            "cannot be combined with a method object, which holds its own settings",
        ),
    ],
    ids=str,
)
def test_a_wrong_word_is_an_error_that_says_what_to_type(words, useful):
    with pytest.raises(ValueError, match=useful) as error:
        NxMConfig(**words)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("recipe", RECIPES)
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


@pytest.mark.parametrize("recipe", RECIPES)
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
    assert NxMConfig.from_any(config) == config
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
    assert not any(NxMConfig(name).is_dense for name in RECIPES if name != "dense")


# -- changing it -------------------------------------------------------------------------------------------------------


def test_changes_go_to_settings_and_fields_by_their_names():
    config = NxMConfig("admm", settings={"dual": False}, warmup=0.1).replace(rho=0.5, settle=0.2, pattern="1:4")
    assert config == NxMConfig("admm", "1:4", {"dual": False, "rho": 0.5}, warmup=0.1, settle=0.2)
    assert NxMConfig("admm").replace(recipe="sr_ste", decay=0.1) == NxMConfig("sr-ste", settings={"decay": 0.1})


def test_a_change_that_is_neither_lists_both():
    with pytest.raises(ValueError, match=r"no 'roh' to set; the recipe 'admm' has rho, steps.*the config has.*settle"):
        NxMConfig("admm").replace(roh=0.1)
    with pytest.raises(ValueError, match=r"no 'rho' to set; the recipe 'ste' has grad_scale"):
        NxMConfig("admm").replace(recipe="ste", rho=0.1)


def test_a_method_object_has_only_the_fields_to_change():
    assert NxMConfig(OWN).replace(warmup=0.1).warmup == 0.1
    with pytest.raises(ValueError, match=r"no 'rho' to set.*no settings.*the config has"):
        NxMConfig(OWN).replace(rho=0.1)
