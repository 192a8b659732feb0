"""Extension of Griffe: it reads sections `Example:` of docstrings, and the arguments of overloads."""

import re
from typing import Any

from griffe import Extension


class ExamplesSections(Extension):
    """Rename the sections, which Griffe knows as `Examples:`, and show the first overload of a function."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Rename the section of one docstring, or take the arguments of the first overload.

        Args:
            obj: A module, class, function or attribute.
            **kwargs: What else Griffe tells.
        """
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
        if obj.is_function and obj.overloads:
            obj.parameters, obj.overloads = obj.overloads[0].parameters, None
