"""NxMConfig: what is pruned and how, in words that fit a JSON file."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from transformers.utils import PushToHubMixin

from nxm_hf import recipes
from nxm_hf._version import __version__
from nxm_hf.config.hub import read_json
from nxm_hf.config.values import as_list, from_json, said, spelled
from nxm_hf.methods import Method, Phases
from nxm_hf.methods.schedules import Frames
from nxm_hf.patterns import Dense, Pattern, parse

CONFIG_FILE = "nxm_config.json"
STAMP = "nxm_config"  # the attribute of a model's own config that remembers ours


def _help(text: str) -> dict[str, str]:
    """What a command line's --help says of a field."""
    return {"help": text}


@dataclass
class NxMConfig(PushToHubMixin):
    """What to prune, and how; wrong words fail here, not at step 0 on a cluster.

    >>> config = NxMConfig(recipe="sr_ste", pattern="2:4", settings={"decay": 1e-4}, settle=0.2)
    >>> config.recipe, NxMConfig.from_dict(config.to_dict()) == config
    ('sr-ste', True)
    >>> NxMConfig(pattern="4:2")
    Traceback (most recent call last):
    ...
    ValueError: ...
    """

    recipe: str = field(default="admm", metadata=_help("A name of `nxm recipes`, or a method object of your own."))
    pattern: str = field(
        default="2:4",
        metadata=_help('Where zeros may stand: "2:4", or by role as JSON: {"ffn": "2:4", "default": "4:8"}.'),
    )
    settings: dict | str | None = field(
        default_factory=dict, metadata=_help("The recipe's own settings, as JSON on a command line.")
    )
    include: list[str] | None = field(
        default=None, metadata=_help("Prune only these: layer names, roles, or 're:' patterns.")
    )
    exclude: list[str] | None = field(
        default=None, metadata=_help("Leave these dense: layer names, roles, or 're:' patterns.")
    )
    on_indivisible: str = field(
        default="error", metadata=_help('Layers that the pattern does not fit: "error" or "skip".')
    )
    warmup: float = field(default=0.0, metadata=_help("Fraction of training that stays dense first."))
    settle: float = field(
        default=0.0, metadata=_help("Last fraction of training, its mask frozen; 0: the recipe's own.")
    )
    layers: dict | None = field(default=None, init=False, compare=False)
    density: float | None = field(default=None, init=False, compare=False)
    pruning: dict | None = field(default=None, init=False, compare=False)  # how `prune` made it, without training
    nxm_version: str = field(default=__version__, init=False, compare=False)

    def __post_init__(self):
        if not isinstance(self.recipe, Method):
            self.recipe = recipes.RECIPES.find(self.recipe)[0]
        self.pattern = spelled(from_json("pattern", self.pattern))
        self.settings = from_json("settings", self.settings) or {}
        self.include, self.exclude = as_list("include", self.include), as_list("exclude", self.exclude)
        self._check_words()
        self.settings = dict(self.settings)
        for pattern in self.patterns().values():  # a setting that is wrong fails here
            if not isinstance(pattern, Dense):
                self.method(pattern)
        if not self.warmup and self._needs_warmup:
            raise ValueError(
                f"{self.recipe} with {self.settings} goes by gradients that the optimizer has seen, so there must be "
                "dense steps before it; got warmup=0. Write warmup=0.5, or leave the settings out."
            )
        if self.calibrated_start and self.calibrated_start.phase == "settle" and not self.phases[1]:
            raise ValueError(
                f"{self.recipe} with {self.settings} is pruned by {self.calibrated_start.method} where settling begins "
                'and with settle=0 it never does. Write settle=0.5, or scores="magnitude".'
            )

    def _check_words(self) -> None:
        if self.on_indivisible not in ("error", "skip"):
            raise ValueError(f'on_indivisible must be "error" or "skip"; got {self.on_indivisible!r}. Write "skip".')
        if not isinstance(self.settings, dict):
            raise ValueError(f'settings must be a dict such as {{"rho": 0.01}}; got {self.settings!r}.')
        for name in ("warmup", "settle"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name} is a fraction of training, 0 to below 1; got {value!r}. Write {name}=0.1.")
        if sum(self.phases) >= 1:
            raise ValueError(
                f"warmup={self.warmup} and settle={self.phases[1]} leave no step for the recipe; "
                "their sum must be below 1. Write warmup=0.1, settle=0.3."
            )
        if isinstance(self.recipe, Method) and self.settings:
            raise ValueError(f"A method object has its settings in it; got settings={self.settings!r}. Leave them out.")

    # -- what it means -------------------------------------------------------------------------------------------

    def patterns(self) -> dict[str, Pattern]:
        """Role, group or "default" -> pattern."""
        if not isinstance(self.pattern, dict):
            return {"default": parse(self.pattern)}
        return {role: parse(text) for role, text in self.pattern.items()}

    def method(self, pattern: Pattern) -> Method:
        """The method that trains a weight of this pattern."""
        method = self.recipe
        if not isinstance(method, Method):
            method = recipes.make(self.recipe, pattern, self.settings)
        return Phases(method, pattern, *self.phases)

    @property
    def phases(self) -> tuple[float, float]:
        """The fractions of training that are dense at first and settle at last; a settle of 0 is the recipe's own.

        >>> NxMConfig("ste").phases, NxMConfig("admm", settings={"rho": 0.01}).phases
        ((0.0, 0.0), (0.0, 0.0))
        >>> NxMConfig("admm").phases, NxMConfig("admm", warmup=0.2).phases
        ((0.0, 0.5), (0.2, 0.4))
        """
        if self.settle or isinstance(self.recipe, Method):
            return self.warmup, self.settle
        return self.warmup, recipes.RECIPES.settle(self.recipe, self.settings, self.warmup)

    @property
    def calibrated_start(self) -> recipes.CalibratedStart | None:
        """The method of `nxm_hf.prune` that makes the model sparse, and when in a training, if the recipe has one.

        >>> NxMConfig("asp", settings={"scores": "sparsegpt"}).calibrated_start
        CalibratedStart(method='sparsegpt', phase='recipe', required=True)
        """
        return None if isinstance(self.recipe, Method) else recipes.RECIPES.calibrated_start(self.recipe, self.settings)

    @property
    def _needs_warmup(self) -> bool:
        return not isinstance(self.recipe, Method) and recipes.RECIPES.needs_warmup(self.recipe, self.settings)

    def stages(self, pattern: Pattern) -> tuple[Pattern, ...]:
        """Every pattern that a weight goes through on its way to this one."""
        schedule = getattr(self.method(pattern).method, "pattern", pattern)
        return schedule.values if isinstance(schedule, Frames) else (pattern,)

    @property
    def is_dense(self) -> bool:
        """Whether nothing at all is to be pruned."""
        return self.recipe == "dense" or all(isinstance(pattern, Dense) for pattern in self.patterns().values())

    def replace(self, **changes: Any) -> "NxMConfig":
        """A copy with other fields or settings; a word that is neither is an error that lists both.

        >>> NxMConfig("admm").replace(rho=0.01, settle=0.3).settings
        {'rho': 0.01}
        """
        names = [f.name for f in fields(self) if f.init and f.name != "settings"]
        own = {key: changes.pop(key) for key in list(changes) if key in names}
        recipe = own.get("recipe", self.recipe)
        known = {} if isinstance(recipe, Method) else recipes.settings(recipe)
        if wrong := sorted(set(changes) - set(known)):
            raise ValueError(
                f"There is no {', '.join(map(repr, wrong))} to set; the recipe {self.recipe!r} has "
                f"{', '.join(known) or 'no settings'}, and the config has {', '.join(names)}."
            )
        return replace(self, **own, settings={**self.settings, **changes})

    def for_finetuning(self) -> "NxMConfig":
        """A copy that trains what such a config has made sparse, and keeps its masks."""
        return replace(self, recipe="asp", settings={}, warmup=0.0, settle=0.0)

    # -- files ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All that is set and recorded, in JSON's words."""
        words = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.recipe, Method):
            words["recipe"], words["settings"] = "custom", {"method": said(self.recipe)}
        return {name: value for name, value in words.items() if value is not None}

    @classmethod
    def from_dict(cls, words: dict[str, Any]) -> "NxMConfig":
        """The config of a dict; a key of a newer version is an error that names it."""
        known = {f.name: f for f in fields(cls)}
        if wrong := sorted(set(words) - set(known)):
            written = words.get("nxm_version", "unknown")
            raise ValueError(
                f"nxm_hf {__version__} does not know {', '.join(map(repr, wrong))} (written by version {written}); "
                f"it knows {', '.join(known)}. Install a newer nxm-hf, or remove the key."
            )
        words = dict(words)
        if words.get("recipe") == "custom":  # a method object cannot be read back; its mask can be kept
            words.update(recipe="asp", settings={})
        config = cls(**{name: value for name, value in words.items() if known[name].init})
        for name in ("layers", "density", "pruning", "nxm_version"):
            setattr(config, name, words.get(name, getattr(config, name)))
        layers = {} if config.layers is None else config.layers
        if not (isinstance(layers, dict) and all(isinstance(text, str) for text in layers.values())):
            example = '{"layer.0.query": "2:4"}'
            raise ValueError(f"layers must be like {example}; got {str(layers)[:60]}. Save the model again.")
        return config

    @classmethod
    def from_any(cls, sparsity: "NxMConfig | str | dict | Method") -> "NxMConfig":
        """A config from what a user may give: a config, the name of a recipe, a dict, or a method object."""
        if isinstance(sparsity, cls):
            return replace(sparsity)
        if isinstance(sparsity, dict):
            return cls.from_dict(sparsity)
        if isinstance(sparsity, (str, Method)):
            return cls(recipe=sparsity)
        raise TypeError(f'sparsity must be an NxMConfig, a recipe such as "admm", or a dict; got {sparsity!r}.')

    def to_json_string(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `nxm_config.json` into a directory."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(self.to_json_string(), encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    @classmethod
    def from_pretrained(cls, directory_or_repo: str | Path, **kwargs: Any) -> "NxMConfig":
        """Read `nxm_config.json`, or else the stamp in `config.json`, of a directory or a Hub repository."""
        for name in (CONFIG_FILE, "config.json"):
            words = read_json(directory_or_repo, name, kwargs)
            words = words.get(STAMP) if words and name != CONFIG_FILE else words
            if words:
                return cls.from_dict(words)
        raise FileNotFoundError(
            f"{directory_or_repo} holds no {CONFIG_FILE}, and no {STAMP!r} in its config.json; it needs one of them. "
            "A directory that NxMTrainer.save_model wrote has both."
        )
