"""Marks of tests of what the oldest supported versions of transformers do not have or do."""

import pytest
import transformers

OLD = transformers.__version__.startswith("4.")


def not_in_4(reason: str) -> pytest.MarkDecorator:
    """Return the mark of a test that is skipped with transformers 4.57."""
    return pytest.mark.skipif(OLD, reason=f"transformers {transformers.__version__} {reason}")
