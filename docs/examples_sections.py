"""Extension of Griffe: let it read the sections `Example:` of docstrings, which it knows as `Examples:`."""

import re
from typing import Any

from griffe import Extension


class ExamplesSections(Extension):
    """Rename the sections."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Rename the section of one docstring.

        Args:
            obj: A module, class, function or attribute.
            **kwargs: What else Griffe tells.
        """
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
