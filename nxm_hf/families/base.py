"""What a family is: the roles of the layers of a kind of model, said as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

ROLES = (
    "query",
    "key",
    "value",
    "qkv",
    "attention_output",
    "ffn_in",
    "ffn_out",
    "cross_query",
    "cross_key",
    "cross_value",
    "cross_output",
    "other",
)

GROUPS = {
    "attention": tuple(role for role in ROLES if role not in ("ffn_in", "ffn_out", "other")),
    "ffn": ("ffn_in", "ffn_out"),
}
# For each role, the roles whose output channels it consumes in the same scope.
PRODUCERS = {
    "ffn_out": ("ffn_in",),
    "attention_output": ("value", "qkv"),
    "cross_output": ("cross_value",),
}
# The attributes in which attention modules keep the number of channels per head.
HEAD_SIZE_ATTRIBUTES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")


@dataclass(frozen=True)
class Family:
    """Models whose layers have the same names. `roles` maps the end of a layer's name to its role.

    An end is whole components: "output.dense" ends "layer.0.output.dense" and not "layer.0.layout_output.dense".
    """

    name: str
    model_types: tuple[str, ...]
    roles: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        for end, role in self.roles.items():
            if role not in ROLES:
                raise ValueError(
                    f"Family {self.name} gives {end!r} the role {role!r}; the roles are {', '.join(ROLES)}."
                )

    def role(self, name: str) -> str | None:
        """The role of the longest end that `name` has, or None when it has none of them."""
        end = self.suffix(name)
        return None if end is None else self.roles[end]

    def suffix(self, name: str) -> str | None:
        """The longest end that `name` has, or None when it has none of them."""
        return max((end for end in self.roles if f".{name}".endswith(f".{end}")), key=len, default=None)
