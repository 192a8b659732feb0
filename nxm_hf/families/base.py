"""The roles of layers, and `Family`: the table that gives the layers of one kind of model their roles."""

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
    """A table of the layer names that several model types share.

    A suffix consists of whole components of a name: "output.dense" is a suffix of "layer.0.output.dense", but not of
    "layer.0.layout_output.dense".

    Args:
        name: The name of the family.
        model_types: The `model_type` of each config that uses this table.
        roles: The role of a layer, by suffix of its name. The longest suffix decides.

    Example:
        >>> family = Family("toy", ("toy",), {"dense": "other", "output.dense": "ffn_out"})
        >>> family.role("layer.0.output.dense"), family.role("layer.0.query")
        ('ffn_out', None)
    """

    name: str
    model_types: tuple[str, ...]
    roles: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        for suffix, role in self.roles.items():
            if role not in ROLES:
                raise ValueError(
                    f"Family {self.name} gives {suffix!r} the role {role!r}; the roles are {', '.join(ROLES)}."
                )

    def role(self, name: str) -> str | None:
        """Return the role of a layer, or None if the table has no suffix of its name.

        Args:
            name: The name of the layer.
        """
        suffix = self.suffix(name)
        return None if suffix is None else self.roles[suffix]

    def suffix(self, name: str) -> str | None:
        """Return the longest suffix of a layer's name in this table, or None if there is none.

        Args:
            name: The name of the layer.
        """
        return max((suffix for suffix in self.roles if f".{name}".endswith(f".{suffix}")), key=len, default=None)
