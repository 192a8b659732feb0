"""NxMConfig: which layers to prune, to which pattern, and by which recipe."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from transformers.utils import PushToHubMixin

from nxm_hf import recipes
from nxm_hf._version import __version__
from nxm_hf.config.hub import (
    CONFIG_FILE,
    CONFIG_SUFFIXES,
    MODEL_CONFIG_KEY,
    read_config_file,
    read_payload,
    write_json,
)
from nxm_hf.config.values import (
    as_list,
    canonical_pattern,
    check_fraction,
    check_places,
    describe_method,
    explain_unknown,
    looks_like_pattern,
    parse_json,
)
from nxm_hf.methods import Method, Phases
from nxm_hf.methods.schedules import Frames
from nxm_hf.patterns import Dense, Pattern, parse

RECORDED = ("layers", "density", "pruning", "nxm_version")  # keys of `nxm_config.json` that `SparsityRecord` reads


def _help(text: str) -> dict[str, str]:
    """Return field metadata that `HfArgumentParser` shows in `--help`."""
    return {"help": text}


def _explain_unknown(name: str, value: Any, recipe: Any) -> str:
    known = recipes.settings(recipe) if isinstance(recipe, str) else {}
    return explain_unknown(name, value, str(recipe), known, [f.name for f in fields(NxMConfig)])


@dataclass(frozen=True)
class NxMConfig(PushToHubMixin):
    """Choose what to prune and how. Every value is checked when the config is made.

    A config is never changed; `replace` returns a changed copy.

    Args:
        recipe: Name of a recipe, as printed by `nxm recipes`, or a method object of your own.
        pattern: Where zeros may stand, such as "2:4", or a dict from role to pattern such as
            `{"ffn": "2:4", "default": "4:8"}`.
        settings: The recipe's own settings, such as `{"rho": 0.01}`. A JSON string is accepted too.
        include: Prune only these layers: names, roles such as "query", groups such as "ffn", or "re:" expressions.
        exclude: Leave these layers dense. Same form as `include`.
        on_indivisible: What to do with a layer whose shape does not fit the pattern: "error" or "skip".
        warmup: Fraction of training that stays dense at the beginning. 0 means the recipe's default.
        settle: Fraction of training at the end during which the final mask is frozen. 0 means the recipe's default.

    Raises:
        ValueError: If a value is wrong. The message says what to write instead.

    Example:
        >>> config = NxMConfig(recipe="sr_ste", pattern="2:4", settings={"decay": 1e-4}, settle=0.2)
        >>> config.recipe, NxMConfig.from_dict(config.to_dict()) == config
        ('sr-ste', True)
        >>> NxMConfig(pattern="4:2")
        Traceback (most recent call last):
        ...
        ValueError: ...
    """

    recipe: str = field(default="admm", metadata=_help("Name of a recipe (see `nxm recipes`)."))
    pattern: str = field(
        default="2:4",
        metadata=_help('Where zeros may stand: "2:4", or by role as JSON: {"ffn": "2:4", "default": "4:8"}.'),
    )
    settings: dict | str | None = field(default_factory=dict, metadata=_help("Settings of the recipe, as JSON."))
    include: list[str] | None = field(
        default=None, metadata=_help("Prune only these layers: names, roles, or 're:' expressions.")
    )
    exclude: list[str] | None = field(
        default=None, metadata=_help("Leave these layers dense: names, roles, or 're:' expressions.")
    )
    on_indivisible: str = field(
        default="error", metadata=_help('What to do with layers that the pattern does not fit: "error" or "skip".')
    )
    warmup: float = field(
        default=0.0,
        metadata=_help("Fraction of training that stays dense at the beginning; 0 means the recipe's default."),
    )
    settle: float = field(
        default=0.0,
        metadata=_help("Fraction of training at the end with a frozen mask; 0 means the recipe's default."),
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> "NxMConfig":
        """Raise for an unknown keyword, before Python does: say what to write instead."""
        names = [f.name for f in fields(cls)]
        for name in kwargs.keys() - set(names):
            recipe = args[0] if args else kwargs.get("recipe", cls.recipe)
            raise TypeError(_explain_unknown(name, kwargs[name], recipe))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.custom_method is None:
            check_places(self.recipe, self.pattern, recipes.names())
            self._set("recipe", recipes.RECIPES.find(self.recipe)[0])
        self._set("pattern", canonical_pattern(parse_json("pattern", self.pattern)))
        self._set("settings", parse_json("settings", self.settings) or {})
        self._set("include", as_list("include", self.include))
        self._set("exclude", as_list("exclude", self.exclude))
        self._check_values()
        self._set("settings", dict(self.recipe_settings))
        for pattern in self.patterns().values():  # the recipe checks its own settings
            if not isinstance(pattern, Dense):
                self.method(pattern)
        self._check_phases()

    def _set(self, name: str, value: Any) -> None:
        """Set a field while the frozen config is being made."""
        object.__setattr__(self, name, value)

    def _check_values(self) -> None:
        if self.on_indivisible not in ("error", "skip"):
            raise ValueError(f'on_indivisible must be "error" or "skip"; got {self.on_indivisible!r}. Write "skip".')
        if not isinstance(self.settings, dict):
            raise ValueError(f'settings must be a dict such as {{"rho": 0.01}}; got {self.settings!r}.')
        check_fraction("warmup", self.warmup)
        check_fraction("settle", self.settle)
        if sum(self.phases) >= 1:
            raise ValueError(
                f"warmup={self.phases[0]} and settle={self.phases[1]} leave no step for the recipe; "
                "their sum must be below 1. Write warmup=0.1, settle=0.3."
            )
        if self.custom_method is not None and self.settings:
            raise ValueError(
                f"settings={self.settings!r} cannot be combined with a method object, which holds its own settings. "
                "Leave settings out."
            )

    def _check_phases(self) -> None:
        if self.custom_method is not None:
            return
        if not self.warmup and recipes.RECIPES.needs_warmup(self.recipe, self.recipe_settings):
            raise ValueError(
                f"{self.recipe} with {self.settings} needs gradient statistics, so it needs a dense warm-up; got "
                "warmup=0. Write warmup=0.5, or leave the settings out."
            )
        start = self.calibrated_start
        if start and start.phase == "settle" and not self.phases[1]:
            raise ValueError(
                f"{self.recipe} with {self.settings} prunes with {start.method} when the frozen-mask phase starts, and "
                'settle=0 has no such phase. Write settle=0.5, or scores="magnitude".'
            )

    # -- what the values mean ------------------------------------------------------------------------------------

    @property
    def custom_method(self) -> Method | None:
        """Return the user's own method object, or None if `recipe` is a name."""
        recipe: Any = self.recipe
        return recipe if isinstance(recipe, Method) else None

    @property
    def recipe_settings(self) -> dict[str, Any]:
        """Return `settings` as the dict that it is after construction."""
        return cast(dict[str, Any], self.settings)

    def patterns(self) -> dict[str, Pattern]:
        """Return the patterns by role, by group of roles, or under "default".

        Returns:
            A dict with one entry, "default", if the config names one pattern.
        """
        pattern: Any = self.pattern
        if not isinstance(pattern, dict):
            return {"default": parse(pattern)}
        return {role: parse(text) for role, text in pattern.items()}

    def method(self, pattern: Pattern) -> Phases:
        """Make the method that trains a weight to a pattern.

        Args:
            pattern: The pattern that the weight must hold at the end.

        Returns:
            The recipe's method, between a dense warm-up and a phase with a frozen mask.
        """
        if self.custom_method is not None:
            return Phases(self.custom_method, pattern, *self.phases)
        method = recipes.make(self.recipe, pattern, self.recipe_settings)
        return Phases(method, pattern, *self.phases, recipes.RECIPES.find(self.recipe)[1].early)

    @property
    def phases(self) -> tuple[float, float]:
        """Return the fractions of training with dense weights first and with a frozen mask last.

        Example:
            >>> NxMConfig("ste").phases, NxMConfig("admm", settings={"rho": 0.01}).phases
            ((0.0, 0.0), (0.0, 0.0))
            >>> NxMConfig("admm").phases, NxMConfig("admm", warmup=0.2).phases
            ((0.0, 0.5), (0.2, 0.4))
            >>> NxMConfig("alps").phases, NxMConfig("fade").phases
            ((0.5, 0.0), (0.2, 0.3))
        """
        if self.custom_method is not None:
            return self.warmup, self.settle
        default = recipes.RECIPES.find(self.recipe)[1].warmup
        warmup = self.warmup or min(default, (1 - self.settle) / 2)  # which leaves steps for the recipe
        return warmup, self.settle or recipes.RECIPES.settle(self.recipe, self.recipe_settings, warmup)

    @property
    def calibrated_start(self) -> recipes.CalibratedStart | None:
        """Return how the recipe prunes with calibration data during training, or None if it does not.

        Example:
            >>> NxMConfig("asp", settings={"scores": "sparsegpt"}).calibrated_start
            CalibratedStart(method='sparsegpt', phase='recipe', required=True, preview=False)
        """
        if self.custom_method is not None:
            return None
        return recipes.RECIPES.calibrated_start(self.recipe, self.recipe_settings)

    def stages(self, pattern: Pattern) -> tuple[Pattern, ...]:
        """Return every pattern that a weight goes through on its way to the final one.

        Args:
            pattern: The final pattern.

        Returns:
            The patterns in order; the last one is `pattern`.
        """
        schedule = getattr(self.method(pattern).method, "pattern", pattern)
        return schedule.values if isinstance(schedule, Frames) else (pattern,)

    @property
    def is_dense(self) -> bool:
        """Return True if no layer is to be pruned."""
        return self.recipe == "dense" or all(isinstance(pattern, Dense) for pattern in self.patterns().values())

    # -- copies --------------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> "NxMConfig":
        """Return a copy with other fields or other recipe settings.

        Args:
            **changes: Names of fields, or of settings of the recipe, with their new values.

        Returns:
            The changed copy.

        Raises:
            ValueError: If a name is neither a field nor a setting. The message lists both.

        Example:
            >>> NxMConfig("admm").replace(rho=0.01, settle=0.3).settings
            {'rho': 0.01}
        """
        names = [f.name for f in fields(self) if f.name != "settings"]
        own = {key: changes.pop(key) for key in list(changes) if key in names}
        recipe = own.get("recipe", self.recipe)
        known = {} if isinstance(recipe, Method) else recipes.settings(recipe)
        if unknown := sorted(set(changes) - set(known)):
            raise ValueError(
                f"There is no {', '.join(map(repr, unknown))} to set; the recipe {recipe!r} has "
                f"{', '.join(known) or 'no settings'}, and the config has {', '.join(names)}."
            )
        return replace(self, **own, settings={**self.recipe_settings, **changes})

    def for_finetuning(self) -> "NxMConfig":
        """Return a copy that trains a model which is sparse already and keeps its masks."""
        return replace(self, recipe="asp", settings={}, warmup=0.0, settle=0.0)

    # -- files ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a dict that fits a JSON file."""
        payload: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.custom_method is not None:
            payload["recipe"], payload["settings"] = "custom", {"method": describe_method(self.custom_method)}
        payload = {name: value for name, value in payload.items() if value is not None}
        return {**payload, "nxm_version": __version__}

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> "NxMConfig":
        """Make a config from a dict.

        Args:
            payload: What `to_dict` returned, or the content of `nxm_config.json`. The keys of a `SparsityRecord` are
                accepted and ignored.

        Returns:
            The config. A method object cannot be read back; the config then keeps the masks (recipe "asp").

        Raises:
            ValueError: If a key is unknown, for instance because a newer version wrote it.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(payload) - {*known, *RECORDED})
        if unknown and "nxm_version" not in payload and payload.keys() & set(known):  # a user wrote it
            raise ValueError(_explain_unknown(unknown[0], payload[unknown[0]], payload.get("recipe", cls.recipe)))
        if unknown:
            raise ValueError(
                f"nxm_hf {__version__} does not know {', '.join(map(repr, unknown))} (written by version "
                f"{payload.get('nxm_version', 'unknown')}); it knows {', '.join((*known, *RECORDED))}. Install a newer "
                "nxm-hf, or remove the key."
            )
        values = {name: value for name, value in payload.items() if name in known}
        if values.get("recipe") == "custom":
            values.update(recipe="asp", settings={})
        return cls(**values)

    @classmethod
    def from_any(cls, sparsity: "NxMConfig | str | Path | dict[str, Any] | Method") -> "NxMConfig":
        """Make a config from anything that `sparsity=` takes.

        Args:
            sparsity: A config, a method object, the name of a recipe, or a pattern such as "2:4". A dict, or the same
                as JSON, or the path of a JSON or YAML file also works.

        Returns:
            The config.

        Raises:
            TypeError: If it is none of these.
            ValueError: If a text is none of these, or a value is wrong.
            FileNotFoundError: If it is the path of a file that does not exist.

        Example:
            >>> NxMConfig.from_any("ste").recipe, NxMConfig.from_any("1:4").pattern
            ('ste', '1:4')
        """
        if isinstance(sparsity, cls):
            return sparsity
        if isinstance(sparsity, dict):
            return cls.from_dict(sparsity)
        if isinstance(sparsity, Path):
            return cls.from_dict(read_config_file(sparsity))
        if isinstance(sparsity, str):
            return cls._from_text(sparsity.strip())
        if isinstance(sparsity, Method):
            return cls(recipe=cast(str, sparsity))
        raise TypeError(
            f'sparsity must be an NxMConfig, a recipe such as "admm", a pattern such as "2:4", a dict, or the path of '
            f"a JSON or YAML file; got {sparsity!r}."
        )

    @classmethod
    def _from_text(cls, text: str) -> "NxMConfig":
        if text.startswith("{"):
            return cls.from_dict(parse_json("sparsity", text))
        if looks_like_pattern(text) and not text.endswith(CONFIG_SUFFIXES):
            return cls(pattern=text)
        if text.endswith(CONFIG_SUFFIXES) or (text not in recipes.names() and text and Path(text).exists()):
            return cls.from_dict(read_config_file(Path(text)))
        return cls(recipe=text)

    def to_json_string(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `nxm_config.json` into a directory.

        Args:
            save_directory: The directory; it is created if needed.
            push_to_hub: Upload the directory to the Hub too.
            **kwargs: Arguments of `push_to_hub`, such as `repo_id`.
        """
        folder = Path(save_directory)
        write_json(folder, CONFIG_FILE, self.to_dict())
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    @classmethod
    def from_pretrained(cls, directory_or_repo: str | Path, **kwargs: Any) -> "NxMConfig":
        """Read the config of a saved model.

        Args:
            directory_or_repo: A directory, or the name of a Hub repository.
            **kwargs: Arguments of `huggingface_hub.hf_hub_download`, such as `revision`.

        Returns:
            The config in `nxm_config.json`, or else the one inside the model's `config.json`.

        Raises:
            FileNotFoundError: If there is neither.
        """
        payload = read_payload(directory_or_repo, kwargs)
        if payload is None:
            raise FileNotFoundError(
                f"{directory_or_repo} holds no {CONFIG_FILE}, and no {MODEL_CONFIG_KEY!r} in its config.json; it needs "
                "one of them. A directory that NxMTrainer.save_model wrote has both."
            )
        return cls.from_dict(payload)
