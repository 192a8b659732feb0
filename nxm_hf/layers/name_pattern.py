r"""Search names with regular expressions, in time that grows with their lengths alone.

`re` tries one way after another, and "(a+)+$" has as many ways as 2 to the length of a name. Entries of `include` and
`exclude` come from configs, which may be a stranger's. So the expression becomes a graph here. Each node holds the
positions of a name from which the rest of the expression matches, as the bits of one integer. Every bit is set once.

These parts of an expression are supported: characters, `.`, sets such as `[0-3]`, `\d`, `\s`, `\w` and their opposites,
`^`, `$`, `\A`, `\Z`, `\b`, `\B`, groups, `|`, `*`, `+`, `?`, `{m,n}`, `(?=...)` and `(?!...)`. Backreferences,
lookbehind and flags are refused.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

MAX_LENGTH = 500  # characters of an expression
MAX_NODES = 2000  # of its graph, in which "x{5}" are five
MAX_DEPTH = 30  # of groups inside groups
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?=[\d,])(\d*)(,?)(\d*)\})\??")
_TOKEN = re.compile(
    r"\\[^a-zA-Z0-9]|\\[AZbBdDsSwW]"  # one character, one of a kind, or a place between two
    r"|\[\^?\]?(?:[^\]\\]|\\.)*\]"  # a set
    r"|\(\?[:=!]|\((?!\?)|[)|]"  # groups
    rf"|{_QUANTIFIER.pattern}"
    r"|[^\\\[({]",  # any other character stands for itself
    re.DOTALL,
)
_BETWEEN = ("^", "$", r"\A", r"\Z", r"\b", r"\B")  # tokens that match a place, and no character
_SUPPORTED = r". [...] \d \s \w ^ $ \b ( | ) * + ? {m,n} (?=...) (?!...)"


class _Node(NamedTuple):
    """A node of the graph: a token, a lookahead, or neither, and the nodes that may come next."""

    following: list[int]
    token: str = ""
    ahead: int | None = None  # the node at which a lookahead begins
    negated: bool = False


# Adds the nodes of a part of an expression before a node, and returns the first of them.
_Part = Callable[["NamePattern", int], int]


class NamePattern:
    r"""Search names with one regular expression, as `re.search` does.

    Args:
        text: The expression.

    Raises:
        ValueError: If it is no regular expression, too long, or of a kind that cannot be searched in bounded time. The
            message is a clause that begins with a verb.

    Example:
        >>> pattern = NamePattern(r"layer\.[0-3]\..*query$")
        >>> pattern.is_in("bert.layer.2.query"), pattern.is_in("bert.layer.4.query")
        (True, False)
        >>> NamePattern("(a+)+$").is_in("a" * 500 + "b")
        False
    """

    def __init__(self, text: str):
        if len(text) > MAX_LENGTH:
            raise ValueError(f"is longer than {MAX_LENGTH} characters. Write several entries")
        self._nodes = [_Node([])]  # node 0: the end, where all has matched
        self._tokens = [*_tokens(text), ")"]
        _compiled(text)
        part = self._alternatives(0)
        self._start = part(self, 0)
        self._atoms = {token: re.compile(token) for node in self._nodes if (token := node.token)}
        self._before: list[list[int]] = [[] for _ in self._nodes]  # the other way along the edges
        for number, node in enumerate(self._nodes):
            for other in node.following:
                self._before[other].append(number)

    def is_in(self, name: str) -> bool:
        """Return True if the expression matches anywhere in a name.

        Args:
            name: The name.
        """
        masks = {token: self._places(token, name) for token in self._atoms}
        matching = [0] * len(self._nodes)
        matching[0] = every = (1 << len(name) + 1) - 1
        ahead: dict[int, int] = {}  # the places where each lookahead holds, of those that are solved
        self._spread([0], matching, masks, ahead)
        for number, node in enumerate(self._nodes):  # the nodes of a lookahead stand before it
            if node.ahead is not None:
                ahead[number] = every & ~matching[node.ahead] if node.negated else matching[node.ahead]
                self._spread([*node.following], matching, masks, ahead)
        return matching[self._start] != 0

    def _spread(self, changed: list[int], matching: list[int], masks: dict[str, int], ahead: dict[int, int]) -> None:
        """Propagate the facts of some nodes to the nodes before them, until nothing changes."""
        while changed:
            current = changed.pop()
            for number in self._before[current]:
                node = self._nodes[number]
                if node.ahead is not None and number not in ahead:
                    continue
                mask = masks[node.token] if node.token else ahead.get(number, -1)
                width = 1 if node.token and node.token not in _BETWEEN else 0
                places = matching[current] >> width & mask
                if places & ~matching[number]:
                    matching[number] |= places
                    changed.append(number)

    def _places(self, token: str, name: str) -> int:
        """Return the places of a name where a token matches, as bits."""
        match, places = self._atoms[token].match, 0
        for place in range(len(name) + 1):
            if match(name, place):
                places |= 1 << place
        return places

    # -- from text to graph ----------------------------------------------------------------------------------------

    def _add(self, node: _Node) -> int:
        if len(self._nodes) >= MAX_NODES:
            raise ValueError(f"repeats too much: more than {MAX_NODES} parts. Write smaller numbers in {{m,n}}")
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _alternatives(self, depth: int) -> _Part:
        """Read alternatives up to the closing parenthesis, which is read too."""
        if depth > MAX_DEPTH:
            raise ValueError(f"has more than {MAX_DEPTH} groups inside each other. Write fewer")
        branches = [self._sequence(depth)]
        while self._tokens.pop(0) == "|":
            branches.append(self._sequence(depth))
        if len(branches) == 1:
            return branches[0]
        return lambda graph, after: graph._add(_Node([branch(graph, after) for branch in branches]))

    def _sequence(self, depth: int) -> _Part:
        parts: list[_Part] = []
        while self._tokens[0] not in ("|", ")"):
            part = self._atom(self._tokens.pop(0), depth)
            if found := _QUANTIFIER.fullmatch(self._tokens[0]):
                self._tokens.pop(0)
                part = _repeated(part, *_bounds(found))
            parts.append(part)

        def sequence(graph: NamePattern, after: int) -> int:
            for part in reversed(parts):
                after = part(graph, after)
            return after

        return sequence

    def _atom(self, token: str, depth: int) -> _Part:
        if _QUANTIFIER.fullmatch(token):
            raise _unsupported(token)  # after another one: possessive
        if token in ("(", "(?:"):
            return self._alternatives(depth + 1)
        if token in ("(?=", "(?!"):
            content, negated = self._alternatives(depth + 1), token == "(?!"
            return lambda graph, after: graph._add(_Node([after], ahead=content(graph, 0), negated=negated))
        return lambda graph, after: graph._add(_Node([after], token))


def _repeated(part: _Part, least: int, most: int | None) -> _Part:
    """Return a part that matches so many times in a row; None is any number of times."""

    def repeated(graph: NamePattern, after: int) -> int:
        if most is None:
            loop = graph._add(_Node([after]))
            graph._nodes[loop].following.append(part(graph, loop))
            after = loop
        for _ in range((most or least) - least):
            after = graph._add(_Node([after, part(graph, after)]))
        for _ in range(least):
            after = graph._add(_Node([part(graph, after)]))
        return after

    return repeated


def _bounds(quantifier: re.Match[str]) -> tuple[int, int | None]:
    """Return how often a quantifier repeats at least and at most."""
    if (simple := {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(quantifier[0][0])) is not None:
        return simple
    least, comma, most = quantifier.groups()
    bounds = int(least or 0), int(most) if most else None if comma else int(least or 0)
    if max(bounds[0], bounds[1] or 0) > MAX_NODES:
        raise ValueError(f"repeats too much: more than {MAX_NODES} parts. Write smaller numbers in {{m,n}}")
    return bounds


def _tokens(text: str) -> list[str]:
    """Split an expression. Raise if it is not a regular expression, or has a form that is not supported here."""
    tokens, place = [], 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            beginning = text[place : place + 3] if text.startswith(("(?", "\\"), place) else text[place]
            if not beginning.startswith("(?"):
                _compiled(text)
            raise _unsupported(beginning)
        tokens.append(found[0])
        if bounds := _QUANTIFIER.fullmatch(found[0]):
            _bounds(bounds)
        place = found.end()
    return tokens


def _compiled(text: str) -> None:
    """Raise if Python does not take an expression."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None


def _unsupported(construct: str) -> ValueError:
    return ValueError(f"uses {construct!r}, which is not searched for in names. Write it with {_SUPPORTED}")
