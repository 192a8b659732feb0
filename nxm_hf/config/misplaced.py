"""Misplaced arguments: what belongs into an `NxMConfig`, and was given to what takes one."""

from dataclasses import fields
from typing import Any

from nxm_hf import recipes
from nxm_hf.config.config import NxMConfig


def config_with(name: str, value: Any, sparsity: Any = None) -> str | None:
    """Return the config that a user means by an argument that belongs into it, as it is written; None if it does not.

    Args:
        name: The name of the argument.
        value: Its value.
        sparsity: The name of the recipe, or anything else that was given beside it.

    Example:
        >>> config_with("rho", 0.01), config_with("pattern", "1:4", "asp")
        ("NxMConfig('admm', settings={'rho': 0.01})", "NxMConfig('asp', pattern='1:4')")
    """
    own = sparsity if isinstance(sparsity, str) and sparsity in recipes.names() else None
    if name in [field.name for field in fields(NxMConfig)]:
        return f"NxMConfig({'' if own is None or name == 'recipe' else f'{own!r}, '}{name}={value!r})"
    takers = [recipe for recipe in (own or NxMConfig.recipe, *recipes.names()) if name in recipes.settings(recipe)]
    return f"NxMConfig({takers[0]!r}, settings={ {name: value}!r})" if takers else None


def refuse_misplaced(host: str, unknown: dict[str, Any], sparsity: Any, has: str, form: str) -> None:
    """Raise for arguments that a function or class does not have.

    Args:
        host: Its name.
        unknown: The arguments that it does not have.
        sparsity: What was given as its sparsity.
        has: The arguments that it has.
        form: The call to write instead, with "{}" where the config stands.

    Raises:
        TypeError: If there are any.

    Example:
        >>> refuse_misplaced("attach", {"steps": 3}, "asp", "total_steps", "attach(..., {})")
        Traceback (most recent call last):
        ...
        TypeError: attach has no steps=. Write attach(..., NxMConfig('admm', settings={'steps': 3})).
    """
    for name, value in unknown.items():
        meant = config_with(name, value, sparsity)
        advice = f"Write {form.format(meant)}." if meant else f"It has {has}."
        raise TypeError(f"{host} has no {name}=. {advice}")
