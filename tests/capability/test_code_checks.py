"""Code in replies: it is folded by an evaluator of ours, never run, and what that does not know is wrong."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import steermoe.capability
from steermoe.capability.code_checks import Expression, Function, NotFolded, code_in, fold

SQUARE = Expression((({"n": 5}, 25), ({"n": -3}, 9)))
DOUBLE = Function("double", (((4,), 8), ((-1,), -2)))


@pytest.mark.parametrize(
    "reply",
    [
        "n ** 2",
        "n * n",
        "`n*n`",
        "```python\nn ** 2\n```",
        "Here it is:\n\n```\nabs(n) * abs(n)\n```\nIt multiplies.",
        "```python\nn * n",
        "n * n if n > 0 else n ** 2",
    ],
)
def test_any_expression_of_the_right_value_will_do(reply: str) -> None:
    assert SQUARE.fault(reply) == ""


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("n * 2", "gives 10, not 25, for {'n': 5}"),
        ("n ** 2.0", "gives 25.0, not 25, for {'n': 5}"),
        ("the square of n", "no Python expression"),
        ("n = 5", "no Python expression"),
        ("", "no Python expression"),
        ("pow(n, 2)", "not understood: Call"),
        ("m ** 2", "not understood: Name"),
        ("n ** n", "not understood: a large power"),
        ("n / 0", "not understood: ZeroDivisionError"),
        ("+".join(["n"] * 90), "longer than is needed"),
        ("(" * 500 + "n" + ")" * 500, "no Python expression"),
        ("n\0", "no Python expression"),
    ],
)
def test_a_wrong_expression_says_why(reply: str, reason: str) -> None:
    assert SQUARE.fault(reply) == reason


@pytest.mark.parametrize(
    "reply",
    [
        "def double(n):\n    return n * 2",
        "def double(number: int) -> int:\n    '''Twice.'''\n    return 2 * number",
        "Sure!\n```python\ndef double(x):\n    return x + x\n```\nIt adds x to itself.",
    ],
)
def test_any_function_that_returns_the_right_values_will_do(reply: str) -> None:
    assert DOUBLE.fault(reply) == ""


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("def double(n):\n    return n + 2", "gives 6, not 8, for {'n': 4}"),
        ("def twice(n):\n    return n * 2", "no function named double"),
        ("lambda n: n * 2", "no function named double"),
        ("def double(a, b):\n    return a * b", "takes 2 arguments"),
        ("def double(n):\n    m = n * 2\n    return m", "not one return statement"),
        ("def double(n):\n    return", "not one return statement"),
        ("def double(n) return n * 2", "no Python code"),
    ],
)
def test_a_wrong_function_says_why(reply: str, reason: str) -> None:
    assert DOUBLE.fault(reply) == reason


def folded(text: str, **variables: Any) -> Any:
    return fold(ast.parse(text, mode="eval").body, variables)


def test_values_are_pythons_own() -> None:
    assert folded("1 + 2 * 3 - 4 // 3") == 6
    assert folded("-7 % 3") == 2
    assert folded("7 / 2") == 3.5
    assert folded("not x and 1 < y <= 3 != 4", x=0, y=3) is True
    assert folded("x != 0 and 10 // x > 1", x=0) is False
    assert folded("a or b", a=0, b=5) == 5
    assert folded("'sun'.upper() + 'ab' * 2") == "SUNabab"
    assert folded("w[::-1]", w="abc") == "cba"
    assert folded("len(v) + max(v) + min(v) + sum(v)", v=(1, 2)) == 8
    assert folded("sorted(v)[0] in [1]", v=(2, 1)) is True
    assert folded("int('7') + abs(-2)") == 9


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "open('x')",
        "eval('1')",
        "(lambda: 1)()",
        "[i for i in [1]]",
        "f'{1}'",
        "'%1000000d' % 1",
        "'{:>1000000}'.format(1)",
        "'a' * 1000000",
        "[0] * 1000000",
        "1000000 * 'a'",
        "10 ** 4 ** 4 ** 4",
        "99999999999",
        "1e300",
        "b'a'",
        "1j",
        "...",
        "'x'.zfill(1000000)",
        "sum([1], start=2)",
        "'a'.unknown()",
        "(1).upper()",
        "[1][5]",
        "int('x')",
        "1 @ 2",
        "1 << 40",
        "~1",
    ],
)
def test_what_the_evaluator_does_not_know_has_no_value(text: str) -> None:
    with pytest.raises(NotFolded):
        folded(text)


def test_nothing_in_the_room_runs_code() -> None:
    room = Path(steermoe.capability.__file__).parent
    runners = {"eval", "exec", "compile", "__import__"}
    for path in room.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id in runners), path
            imported = node.names if isinstance(node, ast.Import) else []
            assert not {alias.name for alias in imported} & {"subprocess", "os", "runpy"}, path


def test_code_is_the_first_fenced_block_or_the_whole_reply() -> None:
    assert code_in("a\n```python\nb\n```\n```\nc\n```") == "b"
    assert code_in("```py\nb\n") == "b"
    assert code_in("\nx + 1\n") == "x + 1"
