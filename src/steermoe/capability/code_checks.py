"""Code that a model wrote, checked without running it.

It is parsed, and its one expression is folded over known values by the small evaluator below, which knows integers,
truth values, texts, lists and a few operations, and gives up on anything else: on calls of other names, attributes
that are not listed, loops, imports, large numbers, long texts.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LARGEST = 10**9
LONGEST = 200
MOST_NODES = 100

_FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Expression:
    """A Python expression with the right value in every case.

    Attributes:
        cases: Values of its variables, and the value of the expression.
    """

    cases: tuple[tuple[Mapping[str, Any], Any], ...]

    def fault(self, reply: str) -> str:
        """What is wrong with a reply; empty where nothing is."""
        tree = _parsed(code_in(reply).strip().strip("`"), "eval")
        if not isinstance(tree, ast.Expression):
            return "no Python expression"
        return _first_fault(tree.body, self.cases)


@dataclass(frozen=True, slots=True)
class Function:
    """A Python function of one return statement with the right value for every argument list.

    Attributes:
        name: What it must be called.
        cases: Arguments, and what it returns.
    """

    name: str
    cases: tuple[tuple[Sequence[Any], Any], ...]

    def fault(self, reply: str) -> str:
        """What is wrong with a reply; empty where nothing is."""
        tree = _parsed(code_in(reply), "exec")
        if not isinstance(tree, ast.Module):
            return "no Python code"
        found = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == self.name
        ]
        if len(found) != 1:
            return f"no function named {self.name}"
        names = [argument.arg for argument in found[0].args.args]
        body = [node for node in found[0].body if not _is_text(node)]
        if len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None:
            return "not one return statement"
        if any(len(names) != len(arguments) for arguments, _ in self.cases):
            return f"takes {len(names)} arguments"
        cases = [
            (dict(zip(names, arguments, strict=True)), value) for arguments, value in self.cases
        ]
        return _first_fault(body[0].value, cases)


def code_in(reply: str) -> str:
    """The first fenced block of a reply, closed or cut short, or all of the reply."""
    fenced = _FENCE.search(reply)
    return (fenced[1] if fenced else reply).strip("\n")


def _parsed(text: str, mode: Literal["eval", "exec"]) -> ast.AST | None:
    """Its syntax tree; None where it has none. Nothing is compiled, nothing runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return ast.parse(text, mode=mode)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _first_fault(tree: ast.expr, cases: Sequence[tuple[Mapping[str, Any], Any]]) -> str:
    if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
        return "longer than is needed"
    for variables, wanted in cases:
        try:
            found = fold(tree, variables)
        except NotFolded as error:
            return f"not understood: {error}"
        if _kind(found) is not _kind(wanted) or found != _thawed(wanted):
            return f"gives {found!r}, not {wanted!r}, for {dict(variables)!r}"
    return ""


def _kind(value: Any) -> type:
    return list if isinstance(value, list | tuple) else type(value)


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class NotFolded(Exception):
    """An expression uses what the evaluator does not know, or has no value."""


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_COMPARED: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "len": len,
    "abs": abs,
    "max": max,
    "min": min,
    "sum": sum,
    "sorted": sorted,
    "list": list,
    "int": int,
    "bool": bool,
}
_METHODS: Mapping[str, Callable[..., Any]] = {
    name: getattr(str, name) for name in ("upper", "lower", "strip", "startswith", "endswith")
}


def fold(node: ast.AST, variables: Mapping[str, Any]) -> Any:
    """The value of an expression.

    Args:
        node: Parsed, of at most `MOST_NODES` nodes.
        variables: Values of its names.

    Raises:
        NotFolded: It uses something that is not known here, or has no value.
    """
    try:
        value = _fold(node, variables)
    except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise NotFolded(f"{type(error).__name__}") from None
    return value


def _fold(node: ast.AST, variables: Mapping[str, Any]) -> Any:
    value = _folded(node, variables)
    if isinstance(value, int | float) and abs(value) > LARGEST:
        raise NotFolded("a number is too large")
    if isinstance(value, str | list) and len(value) > LONGEST:
        raise NotFolded("a text or list is too long")
    if not isinstance(value, bool | int | float | str | list | slice | None):
        raise NotFolded(f"a {type(value).__name__}")
    return value


def _folded(node: ast.AST, variables: Mapping[str, Any]) -> Any:
    def of(part: ast.AST | None) -> Any:
        return None if part is None else _fold(part, variables)

    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in variables:
            return _thawed(variables[name])
        case ast.List(elts=parts):
            return [of(part) for part in parts]
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, exponent = of(left), of(right)
            if exponent not in (0, 1, 2, 3, 4):
                raise NotFolded("a large power")
            return base**exponent
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            one, other = of(left), of(right)
            if isinstance(op, ast.Mult) and not (_is_number(one) and _is_number(other)):
                _check_size(one, other)
            if isinstance(op, ast.Mod) and not _is_number(one):
                raise NotFolded("a formatted text")
            return _BINARY[type(op)](one, other)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -of(operand)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not of(operand)
        case ast.BoolOp(op=op, values=parts):
            value = None
            for part in parts:
                value = of(part)
                if bool(value) is isinstance(op, ast.Or):
                    break
            return value
        case ast.IfExp(test=test, body=body, orelse=other):
            return of(body) if of(test) else of(other)
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compared(of(left), ops, (of(other) for other in others))
        case ast.Subscript(value=value, slice=index):
            return of(value)[of(index)]
        case ast.Slice(lower=lower, upper=upper, step=step):
            return slice(of(lower), of(upper), of(step))
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(of(argument) for argument in given))
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=given, keywords=[]):
            text = of(value)
            if name in _METHODS and isinstance(text, str):
                return _METHODS[name](text, *(of(argument) for argument in given))
    raise NotFolded(type(node).__name__)


def _compared(one: Any, ops: Sequence[ast.cmpop], others: Iterator[Any]) -> bool:
    """A chain such as `0 < x < 9`, which ends at its first link that does not hold."""
    for op, other in zip(ops, others, strict=True):
        if type(op) not in _COMPARED:
            raise NotFolded(type(op).__name__)
        if not _COMPARED[type(op)](one, other):
            return False
        one = other
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _check_size(one: Any, other: Any) -> None:
    """A text times a number: refused before it is made, where it would be long."""
    length = len(one) if isinstance(one, str | list) else len(other)
    times = other if isinstance(one, str | list) else one
    if length * times > LONGEST:
        raise NotFolded("a text or list is too long")
