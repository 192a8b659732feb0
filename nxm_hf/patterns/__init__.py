"""Patterns: where the zeros of a weight may be.

`PATTERNS` is the registry, and `parse` reads texts with it. To add a pattern, add a file with its class,
one line here, and a solver for its kind in `nxm_hf.solvers`.
"""

import re

from nxm_hf.patterns.base import Pattern
from nxm_hf.patterns.block import Block
from nxm_hf.patterns.dense import Dense
from nxm_hf.patterns.nm import NM
from nxm_hf.patterns.transposable import Transposable
from nxm_hf.patterns.unstructured import Unstructured

LONGEST_TEXT = 100  # of a pattern; Python takes long to read endless numbers
PATTERNS: tuple[type[Pattern], ...] = (NM, Transposable, Unstructured, Block, Dense)


def parse(text: str | Pattern) -> Pattern:
    """Return the pattern that a text names.

    Args:
        text: A text like "2:4", or a pattern, which is returned as it is.

    Raises:
        TypeError: It is neither a text nor a pattern.
        ValueError: No pattern has this name, or its numbers are wrong.

    Example:
        >>> parse("2:4"), str(parse("4x2"))
        (NM(n=2, m=4), '2:4')
    """
    if isinstance(text, Pattern):
        return text
    if not isinstance(text, str):
        hint = " YAML needs the quotes, without which 2:4 is a number." if isinstance(text, int) else ""
        raise TypeError(f"A pattern is a text or a Pattern; got {type(text).__name__} {text!r}. Write '2:4'.{hint}")
    readable = text.isascii() and len(text) <= LONGEST_TEXT  # Python reads digits of any script
    for pattern_class in PATTERNS if readable else ():
        if (pattern := pattern_class.read(text.strip().lower())) is not None:
            return pattern
    forms = ", ".join(repr(pattern_class.examples[0]) for pattern_class in PATTERNS)
    raise ValueError(
        f"There is no pattern {text[:100]!r}. The forms are, by example: {forms} and 'block:4x4:0.5'.{_meant(text)}"
    )


def _meant(text: str) -> str:
    """Return what to write instead of another spelling of N:M, of a transposable pattern, or of a fraction."""
    if counts := re.fullmatch(r"(\d{1,3})\s*(?:/|-|,|\s|of|in|out of)\s*(\d{1,3})", text.strip().lower()):
        kept, group = sorted(map(int, counts.groups()))
        return f" Write '{kept}:{group}'."
    if transposable := re.fullmatch(r"(\d{1,3}:\d{1,3})[-_ ]?t[a-z]*", text.strip().lower()):
        return f" Write '{transposable[1]}-transposable'."
    if re.fullmatch(r"0?\.\d+|\d{1,2}(\.\d+)?\s*%", text.strip()):
        return " Write 'unstructured:0.5' to keep half of the weights."
    return ""


__all__ = ["NM", "PATTERNS", "Block", "Dense", "Pattern", "Transposable", "Unstructured", "parse"]
