"""Small faults in source code: what can be changed in a file, one place at a time."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_OPPOSITE = {ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn}
_OPPOSITE |= {other: one for one, other in _OPPOSITE.items()}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# Functions that give the same when their first two arguments are exchanged.
_SYMMETRIC = {"min", "max", "equal", "minimum", "maximum", "samefile", "samestat", "gcd", "add", "mul", "isclose"}
_SYMMETRIC |= {"and_", "or_", "xor", "fadd", "fmul", "array_equal", "transpose"}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """A fault in one place of a file.

    Args:
        file: The path of the file, from the root of the tree.
        function: The function or class around the place, such as "Engine.deploy", or "" at the level of the module.
        line: The line of the place.
        operator: The name of the change, such as "boundary".
        before: The code at the place.
        after: The code of the mutant at the place.
        span: The bytes of the file that are replaced.
        code: The text of the line.
    """

    file: str
    function: str
    line: int
    operator: str
    before: str
    after: str
    span: tuple[int, int]
    code: str

    @property
    def key(self) -> str:
        """Return a name that no other mutant of the tree has."""
        return f"{self.file}:{self.line} {self.operator} {self.span[0]}-{self.span[1]} {self.after}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.operator}: {self.before}  ->  {self.after}"

    def applied_to(self, text: str) -> str:
        """Return the text of the file with this fault in it; no other line moves.

        Args:
            text: The text of the file.
        """
        data, (start, end) = text.encode(), self.span
        lines = "\n" * data[start:end].count(b"\n")
        after = f"{self.after}{lines}" if self.operator == "statement" else f"({self.after}{lines})"
        return (data[:start] + after.encode() + data[end:]).decode()


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Return all mutants of a file, in the order of its text.

    Args:
        file: The path of the file, from the root of the tree.
        text: Its text.
    """
    starts, lines = [0], text.encode().splitlines(keepends=True)
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []
    for node, function in _places(ast.parse(text), ""):
        span = (starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset)
        before = ast.unparse(node)
        for operator, other in _changes(node):
            if (after := ast.unparse(other)) != before:
                code = lines[node.lineno - 1].strip().decode()
                found.append(Mutant(file, function, node.lineno, operator, before, after, span, code))
    dropped = {mutant.span for mutant in found if mutant.operator == "statement"}
    return [mutant for mutant in found if mutant.operator != "call" or mutant.span not in dropped]


def lines_of_statement(text: str, line: int) -> range:
    """Return the lines of the smallest statement around a line; of a compound statement, those before its body.

    Args:
        text: The text of a file.
        line: The number of a line.
    """
    lines = range(line, line + 1)
    for node in ast.walk(ast.parse(text)):  # from the outside in
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno:
            body = getattr(node, "body", None)
            end = body[0].lineno if isinstance(body, list) else node.end_lineno + 1
            if line < end:
                lines = range(node.lineno, end)
    return lines


def _places(node: ast.AST, function: str) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Yield the statements and expressions that may be changed, each with the function around it.

    Types, decorators, messages of errors and f-strings stay as they are. So does `strict=` of `zip`: in this library
    both lengths come from one list, and it only guards against changes of the code.
    """
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = f"{function}.{node.name}".removeprefix(".")
    if isinstance(node, ast.stmt | ast.expr) and not isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node, function
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom) or _is_strict(node):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        node.test.is_condition = True
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "format_spec"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _places(child, function)


def _is_strict(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _changes(node: ast.stmt | ast.expr) -> Iterator[tuple[str, ast.AST]]:
    """Yield the name of each change of a node, and the changed node."""
    for changes in (_of_statements, _of_operators, _of_constants, _of_calls, _of_conditions):
        yield from changes(node)


def _but(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _of_statements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Drop calls, raises, changes in place, and assignments to parts of objects."""
    stored = isinstance(node, ast.Assign) and all(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets)
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if stored or called or isinstance(node, ast.AugAssign | ast.Raise | ast.Break | ast.Continue | ast.Delete):
        yield "statement", ast.Pass()


def _of_operators(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            for name, table in (("boundary", _BOUNDARY), ("opposite", _OPPOSITE)):
                if type(operator) in table:
                    ops = [*node.ops[:number], table[type(operator)](), *node.ops[number + 1 :]]
                    yield name, _but(node, ops=ops)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield "arithmetic", _but(node, op=_ARITHMETIC[type(node.op)]())
    if isinstance(node, ast.BoolOp):
        yield "and-or", _but(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield "negation", node.operand


def _of_constants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield "constant", ast.Constant(node.value + 1)
    elif isinstance(node.value, float):
        yield "constant", ast.Constant(2 * node.value if node.value else 1.0)


def _of_calls(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if not isinstance(node, ast.Call):
        return
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    starred = any(isinstance(argument, ast.Starred) for argument in node.args[:2])
    if len(node.args) >= 2 and not starred and name not in _SYMMETRIC:
        yield "swap", _but(node, args=[node.args[1], node.args[0], *node.args[2:]])
    for number, keyword in enumerate(node.keywords):
        if not _is_strict(keyword):
            yield "argument", _but(node, keywords=[*node.keywords[:number], *node.keywords[number + 1 :]])
    if isinstance(node.func, ast.Attribute) and not node.args and not node.keywords and node.func.attr != "cpu":
        yield "call", node.func.value
    if isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        yield "function", _but(node, func=ast.Name(_FUNCTIONS[node.func.id]))


def _of_conditions(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Turn choices around whose condition no other change turns around."""
    by_operator = isinstance(node, ast.Compare) and any(type(operator) in _OPPOSITE for operator in node.ops)
    if getattr(node, "is_condition", False) and not by_operator and not isinstance(node, ast.UnaryOp):
        yield "condition", ast.UnaryOp(ast.Not(), node)
