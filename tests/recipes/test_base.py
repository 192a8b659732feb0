"""The registry of recipes, the settings of each, and the errors for wrong names and values."""

import inspect

import pytest
import torch

from nxm_hf import NxMConfig, recipes
from nxm_hf.methods import ADMM, DenseTraining, Masked, Method
from nxm_hf.methods.schedules import ALWAYS, NEVER, Clock, Constant, Decay, Evenly, Every, EveryEpoch, Frames
from nxm_hf.patterns import NM
from nxm_hf.recipes import CalibratedStart, Recipe, RecipeRegistry
from tests.support.toy_training import bits, same, short, trained, weights

NAMES = recipes.names()
SETTINGS = [(name, setting) for name in NAMES for setting in recipes.settings(name)]
PATTERN, START = NM(2, 4), Clock(0, 10, epoch=5)

# What else a setting can be, where that does not follow from its default, and what it needs beside it.
OTHERS = {
    ("asp", "preview"): None,  # changes what is shown, not what is trained; tested in tests/engine/test_preview.py
    ("admm", "preview"): None,
    ("alps", "preview"): None,
    ("asp", "scores"): None,  # looks at data, or at gradients of a warm-up; tested by itself
    ("reset", "reset_moments"): ({}, "both"),
    ("mask-decay", "schedule"): ({}, "exponential"),
    ("mask-decay", "rate"): ({}, 0.01),
    ("mask-decay", "grad"): ({}, "ste"),
    ("structure-decay", "schedule"): None,  # its groups are wider than a toy; tested by itself
    ("structure-decay", "frames"): ({}, ["dense", "2:4"]),
    ("set", "schedule"): ({}, "linear"),
    ("rigl", "schedule"): ({}, "linear"),
    ("gradual", "start_density"): ({}, 0.75),
    ("admm", "rho"): ({}, 10.0),
    ("admm", "steps"): ({}, 2),
    ("admm", "penalty"): ({}, "decoupled"),
    ("admm", "contraction"): ({"penalty": "decoupled"}, 0.3),
    ("admm", "start"): ({}, "B"),
    ("admm", "scores"): ({}, "magnitude"),
    ("admm", "rho_schedule"): ({"rho": 10.0}, "geometric"),
    ("admm", "rho_start_ratio"): ({"rho": 10.0, "rho_schedule": "geometric"}, 0.5),
    ("admm", "pull"): ({"rho": 10.0}, "pruned"),
    ("fade", "scores"): ({}, "magnitude"),
    ("fade", "refresh"): ({}, 1),
}


def other(recipe, setting):
    """Settings to start from, and another value of this one."""
    default = recipes.settings(recipe)[setting]
    if (recipe, setting) in OTHERS:
        return OTHERS[recipe, setting]
    if isinstance(default, bool):
        return {}, not default
    assert isinstance(default, (int, float)), f"say in OTHERS what else {setting} of {recipe} can be"
    return {}, 3 if isinstance(default, int) else default / 10 if default >= 0.1 else default * 100


# The registry


def test_a_name_is_spelled_with_hyphens_and_underscores_are_accepted():
    for name in NAMES:
        assert name == name.lower() and "_" not in name
        for spelled in (name, name.replace("-", "_"), name.upper(), f" {name} "):
            assert recipes.RECIPES.find(spelled) == recipes.RECIPES.find(name)
            assert NxMConfig(recipe=spelled).recipe == name


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_makes_a_method_of_its_pattern(recipe):
    method = recipes.make(recipe, PATTERN, {})
    assert isinstance(method, Method)
    weight = torch.randn(8, 8)
    with torch.no_grad():
        method.finish(weight, method.init(weight, START), START)
    assert PATTERN.violations(weight) == 0


@pytest.mark.parametrize("recipe", NAMES)
def test_defaults_said_aloud_change_nothing(recipe):
    assert recipes.make(recipe, PATTERN, recipes.settings(recipe)) == recipes.make(recipe, PATTERN, {})


@pytest.mark.parametrize("recipe", NAMES)
def test_describe_gives_the_first_line_and_the_reference(recipe):
    sheet = inspect.getdoc(recipes.RECIPES.find(recipe)[1].make)
    first, reference = recipes.describe(recipe)
    assert first == sheet.splitlines()[0] and "https://" in reference and "Reference" not in reference


def test_the_recipes_are_these_methods():
    assert recipes.dense(PATTERN) == DenseTraining(PATTERN)
    assert recipes.asp(PATTERN) == Masked(Constant(PATTERN), refresh=NEVER, freeze=ALWAYS)
    by_fisher = Masked(Constant(PATTERN), refresh=NEVER, freeze=ALWAYS, scores="fisher")
    assert recipes.alps(PATTERN) == recipes.asp(PATTERN, "fisher") == by_fisher
    assert recipes.ste(PATTERN) == Masked(Constant(PATTERN), refresh=Every(1), reset=NEVER, freeze=NEVER)
    assert recipes.ste(PATTERN, 0.5, 7) == Masked(Constant(PATTERN), refresh=Every(7), grad_scale=Constant(0.5))
    assert recipes.sr_ste(PATTERN) == Masked(Constant(PATTERN), pull=Constant(2e-4))
    assert recipes.admm(PATTERN) == ADMM(PATTERN, None, penalty="coupled", update=Evenly(80, 50), scores="fisher")
    assert recipes.admm(PATTERN, rho=0.01, steps=7) == ADMM(PATTERN, rho=0.01, update=Every(7), start="B")
    assert recipes.admm(PATTERN, steps="epoch").update == EveryEpoch()


def test_the_recipes_are_these_schedules():
    pattern = NM(2, 4)
    assert recipes.fix(pattern) == recipes.ste(pattern)
    assert recipes.regularize(pattern, shrink=0) == recipes.ste(pattern)
    assert recipes.regularize(pattern) == Masked(Constant(pattern), shrink=Constant(2e-4))
    assert recipes.mask_decay(pattern) == Masked(Constant(pattern), gain=Decay("linear"), chain=True)
    assert recipes.structure_decay(pattern).pattern == Frames((NM(3, 4), pattern))
    assert recipes.structure_decay(pattern, frames=["2:4"]).pattern(Clock(0, 1)) == pattern


@pytest.mark.parametrize(("one", "other"), [(("sr-ste", {"decay": 0}), ("ste", {}))])
def test_related_recipes_are_one_where_their_data_sheets_say_so(one, other):
    models = [trained(NxMConfig(recipe, settings=settings))[0] for recipe, settings in (one, other)]
    assert same(*(weights(model) for model in models))


def tiny(pattern, size=3):
    """Do little.

    Reference: Nobody, 2025, https://example.org
    """
    return DenseTraining(pattern)


def test_a_function_is_a_recipe_without_rules():
    registry = RecipeRegistry(tiny)
    assert registry.names() == ["tiny"] and registry.find("TINY") == ("tiny", Recipe(tiny))
    assert registry.settle("tiny", {}, 0.2) == 0.0
    assert registry.calibrated_start("tiny", {}) is None and registry.needs_warmup("tiny", {}) is False


def test_the_rules_of_a_recipe_are_given_all_its_settings():
    recipe = Recipe(
        tiny,
        settle=lambda settings, warmup: settings["size"] * warmup,
        calibrated_start=lambda settings: CalibratedStart("alps", "settle") if settings["size"] == 3 else None,
        needs_warmup=lambda settings: settings["size"] > 3,
    )
    registry = RecipeRegistry(recipe)
    assert registry.settle("tiny", {}, 0.25) == 0.75 and registry.settle("tiny", {"size": 4}, 0.125) == 0.5
    assert registry.calibrated_start("tiny", {}) == CalibratedStart("alps", "settle", required=True)
    assert registry.calibrated_start("tiny", {"size": 4}) is None
    assert not registry.needs_warmup("tiny", {}) and registry.needs_warmup("tiny", {"size": 4})


def test_the_phases_that_recipes_add_by_themselves():
    settled = {name: recipes.RECIPES.settle(name, {}, 0.2) for name in NAMES}
    assert {name: settle for name, settle in settled.items() if settle} == {"fix": 0.5, "admm": 0.4, "fade": 0.3}


# Each setting does something


@pytest.mark.parametrize(("recipe", "setting"), SETTINGS)
def test_each_setting_changes_the_outcome_of_a_short_training(recipe, setting):
    if (case := other(recipe, setting)) is None:
        pytest.skip("has one value here")
    base, value = case
    default = recipes.settings(recipe)[setting]
    assert value != default
    first, then = ({**base, setting: chosen} for chosen in (default, value))
    outcomes = [[*_trained_weights(short(recipe, settings=settings))] for settings in (first, then)]
    assert not same(*outcomes), f"{recipe} ends alike with {setting}={default!r} and {setting}={value!r}"


@pytest.mark.parametrize("recipe", [name for name in NAMES if name != "dense"])
@pytest.mark.parametrize("phase", ["warmup", "settle"])
def test_each_phase_changes_the_outcome_of_a_short_training(recipe, phase):
    share = 0.25 if 0.5 in NxMConfig(recipe).phases else 0.5  # not what the recipe does anyway
    outcomes = [[*_trained_weights(short(recipe, **fields))] for fields in ({}, {phase: share})]
    alike = same(*outcomes)
    assert alike == (recipe == "asp" and phase == "settle"), "asp is settled from the start, and only it"


def _trained_weights(config):
    model, engine = trained(config, steps=12)
    yield from (weight.clone() for _, weight in engine.trained_weights())
    yield from weights(model)


# Errors


@pytest.mark.parametrize(
    ("wrong", "near"), [("srste", "sr-ste"), ("adm", "admm"), ("STEE", "ste"), ("dens", "dense"), ("assp", "asp")]
)
def test_an_unknown_recipe_is_an_error_that_lists_all_and_suggests_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"no recipe {wrong!r}.*{', '.join(NAMES)}.* Write {near!r}"):
        NxMConfig(recipe=wrong)


def test_a_recipe_like_no_other_gets_no_suggestion():
    with pytest.raises(ValueError, match="no recipe 'zzzzzz'") as error:
        recipes.make("zzzzzz", PATTERN, {})
    assert "Write" not in str(error.value)


@pytest.mark.parametrize("recipe", NAMES)
def test_an_unknown_setting_is_an_error_that_lists_the_right_ones(recipe):
    right = ", ".join(recipes.settings(recipe)) or "no settings"
    with pytest.raises(ValueError, match=f"(?s){recipe}.*{right}.*'lambda_w'"):
        NxMConfig(recipe=recipe, settings={"lambda_w": 1})


@pytest.mark.parametrize(("recipe", "setting"), SETTINGS)
@pytest.mark.parametrize("value", [-1, "no such word", None, [1], {}, float("nan"), float("-inf")], ids=repr)
def test_a_wrong_value_fails_when_the_config_is_made(recipe, setting, value):
    if value is None and recipes.settings(recipe)[setting] is None:
        pytest.skip("None is its default")
    with pytest.raises(ValueError) as error:
        NxMConfig(recipe=recipe, settings={setting: value})
    assert repr(value) in str(error.value), "the message shows the value"
    assert any(word in str(error.value) for word in ("Write", "one of", "set ")), "the message says what to type"


def test_bits_tell_negative_zeros_apart():
    """What these tests compare by."""
    assert not torch.equal(bits(torch.tensor([-0.0])), bits(torch.tensor([0.0])))


@pytest.mark.parametrize("name", ["asp", "admm"])
def test_a_preview_needs_a_method_that_prunes_with_data(name):
    settings = {"asp": {}, "admm": {"rho": 0.01}}[name]
    with pytest.raises(ValueError, match='Write scores="alps" beside it'):
        NxMConfig(name, settings={**settings, "preview": True})
    with pytest.raises(ValueError, match=r"preview of .* must be True or False; got 'yes'"):
        NxMConfig(name, settings={"preview": "yes"})
    assert NxMConfig(name, settings={"preview": True, "scores": "alps"}).calibrated_start.preview
    starts = [NxMConfig(name, settings={"preview": True}).calibrated_start for name in ("admm", "alps")]
    assert starts == [CalibratedStart("alps", phase, False, True) for phase in ("settle", "recipe")]


@pytest.mark.parametrize(
    "recipe, setting",
    [(name, key) for name in recipes.names() for key in ("every", "refresh", "steps") if key in recipes.settings(name)],
)
@pytest.mark.parametrize("value", [0, 1.5])
def test_a_wrong_number_of_steps_is_an_error_that_names_its_setting(recipe, setting, value):
    with pytest.raises(ValueError, match=rf"^{setting} of .* whole number.*; got {value}\. Write {setting}=\d+\.$"):
        NxMConfig(recipe, settings={setting: value})
