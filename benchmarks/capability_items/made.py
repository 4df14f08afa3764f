"""Items that are made by code: arithmetic, orders, letters, and what lines of Python print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

Row = dict[str, Any]

BY_HAND = Path(__file__).parent / "by_hand"

WORDS = tuple((BY_HAND / "words.txt").read_text(encoding="utf-8").split())

SHORT, LONGER, CODE = 24, 32, 48
"""Most tokens of a reply: more than an answer needs, since some models begin with the question."""


def choice(category: str, prompt: str, opening: str, answer: str, wrong: list[str]) -> Row:
    """A row of an item that is scored by likelihood."""
    return {
        "category": category,
        "prompt": prompt,
        "scoring": "choice",
        "opening": opening,
        "answer": answer,
        "options": [answer, *wrong],
    }


def exact(category: str, prompt: str, check: Row, answer: str, max_tokens: int = SHORT) -> Row:
    """A row of an item that is scored by a check of the reply."""
    return {
        "category": category,
        "prompt": prompt,
        "scoring": "exact",
        "check": check,
        "answer": answer,
        "max_tokens": max_tokens,
    }


def number(category: str, prompt: str, value: int, max_tokens: int = SHORT) -> Row:
    return exact(category, prompt, {"kind": "number", "value": value}, str(value), max_tokens)


def distinct(random: Random, count: int, draw: Any) -> list[Any]:
    """So many different draws."""
    found: list[Any] = []
    while len(found) < count:
        if (drawn := draw(random)) not in found:
            found.append(drawn)
    return found


def not_last(values: Any, answer: Any) -> list[Any]:
    """The same values, the answer not at their end: who repeats the question and stops is not right by that."""
    return [*values[1:], values[0]] if values[-1] == answer else list(values)


def not_sorted(values: Any, right: list[Any]) -> list[Any]:
    """The same values in an order that is not the one that is asked for."""
    return [*values[1:], values[0]] if list(values) == right else list(values)


def near(random: Random, value: int, count: int = 3) -> list[str]:
    """Wrong numbers of about the same size."""
    offsets = [o for o in range(-9, 10) if o and value + o >= 0]
    return [str(value + offset) for offset in random.sample(offsets, count)]


# ---- arithmetic ----------------------------------------------------------------------------------------


def arithmetic(random: Random) -> Iterator[Row]:
    """Sums, differences, products, quotients, halves and doubles; sequences; odd and even."""

    def pair(low: int, high: int) -> Any:
        return lambda r: (r.randint(low, high), r.randint(low, high))

    for a, b in distinct(random, 6, pair(2, 9)):
        yield number("arithmetic", f"What is {a} plus {b}? Answer with the number only.", a + b)
    for a, b in distinct(random, 6, pair(11, 60)):
        yield number("arithmetic", f"Add {a} and {b}. Reply with the sum and nothing else.", a + b)
    for a, b in distinct(random, 6, pair(3, 40)):
        prompt = f"Take {b} away from {a + b}. What is left? Just the number."
        yield number("arithmetic", prompt, a)
    for a, b in distinct(random, 6, pair(2, 12)):
        yield number("arithmetic", f"Multiply {a} by {b} and give only the product.", a * b)
    for a, b in distinct(random, 6, lambda r: tuple(r.sample(range(2, 11), 2))):
        yield number("arithmetic", f"{a * b} divided by {b} is what number? Number only.", a)
    for (a,) in distinct(random, 4, lambda r: (r.randint(4, 40),)):
        yield number("arithmetic", f"What number is half of {2 * a}?", a)
    for (a,) in distinct(random, 4, lambda r: (r.randint(11, 60),)):
        yield number("arithmetic", f"Double the number {a}. Say the result only.", 2 * a)
    for a, b in distinct(random, 6, pair(1, 9)):
        question, opening = f"How much is {a} + {b}?", f"{a} + {b} ="
        yield choice("arithmetic", question, opening, str(a + b), near(random, a + b))
    for a, b in distinct(random, 6, pair(2, 9)):
        question, opening = f"What is the product of {a} and {b}?", f"{a} x {b} ="
        yield choice("arithmetic", question, opening, str(a * b), near(random, a * b))
    for start, step in distinct(random, 6, lambda r: (r.randint(1, 12), r.randint(1, 10))):
        shown = ", ".join(str(start + i * step) for i in range(5))
        value = start + 5 * step
        question = f"Which number comes next: {shown}?"
        yield choice("arithmetic", question, f"{shown},", str(value), near(random, value))
    for (value,) in distinct(random, 6, lambda r: (r.randint(10, 99),)):
        right, wrong = ("even", "odd") if value % 2 == 0 else ("odd", "even")
        question = f"Is {value} odd or even?"
        yield choice("arithmetic", question, f"The number {value} is", right, [wrong])
    for a, b in distinct(random, 6, lambda r: (r.randint(2, 9), r.randint(2, 9))):
        question = f"There are {a} red and {b} green balls. How many balls are there?"
        yield choice(
            "arithmetic", question, "The number of balls is", str(a + b), near(random, a + b)
        )


# ---- ordering ------------------------------------------------------------------------------------------


def ordering(random: Random) -> Iterator[Row]:
    """Larger and smaller numbers, sorted lists, alphabetical order."""
    for a, b in distinct(random, 6, lambda r: tuple(r.sample(range(2, 100), 2))):
        question = f"Which number is larger, {a} or {b}?"
        yield choice("ordering", question, "The larger number is", str(max(a, b)), [str(min(a, b))])
    for a, b in distinct(random, 6, lambda r: tuple(r.sample(range(100, 1000), 2))):
        question = f"Of {a} and {b}, which is less?"
        yield choice(
            "ordering", question, "The lesser of them is", str(min(a, b)), [str(max(a, b))]
        )
    for numbers in distinct(random, 6, lambda r: tuple(r.sample(range(1, 50), 4))):
        shown = ", ".join(map(str, not_sorted(numbers, sorted(numbers))))
        right = [str(n) for n in sorted(numbers)]
        prompt = f"Sort these numbers from smallest to largest: {shown}. Give only the list."
        check = {"kind": "sequence", "values": right}
        yield exact("ordering", prompt, check, ", ".join(right), LONGER)
    for numbers in distinct(random, 4, lambda r: tuple(r.sample(range(1, 20), 3))):
        descending = sorted(numbers, reverse=True)
        shown = ", ".join(map(str, not_sorted(numbers, descending)))
        right = [str(n) for n in descending]
        prompt = f"Put {shown} into descending order, separated by commas."
        check = {"kind": "sequence", "values": right}
        yield exact("ordering", prompt, check, ", ".join(right), LONGER)
    for numbers in distinct(random, 6, lambda r: tuple(r.sample(range(1, 200), 4))):
        shown = ", ".join(map(str, not_last(numbers, max(numbers))))
        prompt = f"What is the biggest of the numbers {shown}? Number only."
        yield number("ordering", prompt, max(numbers))
    for numbers in distinct(random, 4, lambda r: tuple(r.sample(range(10, 99), 3))):
        first, second, last = not_last(numbers, min(numbers))
        shown = f"{first}, {second} and {last}"
        prompt = f"Name the smallest one among {shown}; write no words."
        yield number("ordering", prompt, min(numbers))
    for words in distinct(random, 6, lambda r: tuple(r.sample(WORDS, 3))):
        right = sorted(words)
        shown = ", ".join(not_sorted(words, right))
        prompt = f"Sort these words alphabetically: {shown}. Write only the words."
        check = {"kind": "sequence", "values": right}
        yield exact("ordering", prompt, check, ", ".join(right), LONGER)
    for words in distinct(random, 6, lambda r: tuple(r.sample(WORDS, 2))):
        question = f"Which word comes first in a dictionary, {words[0]} or {words[1]}?"
        opening = "In a dictionary, first comes the word"
        yield choice("ordering", question, opening, min(words), [max(words)])


# ---- spelling ------------------------------------------------------------------------------------------


def spelling(random: Random) -> Iterator[Row]:
    """Letters of words: spelled, reversed, first and last, counted."""
    words = random.sample(WORDS, len(WORDS))
    for word in words[:6]:
        check = {"kind": "sequence", "values": list(word)}
        prompt = f'Spell the word "{word}" with a hyphen between the letters.'
        yield exact("spelling", prompt, check, "-".join(word), LONGER)
    for word in words[6:12]:
        prompt = f'What is the first letter of the word "{word}"? Reply with the letter only.'
        check = {"kind": "words", "accepted": [word[0]]}
        yield exact("spelling", prompt, check, word[0])
    for word in words[12:18]:
        prompt = f'With which letter does "{word}" end? Just the letter.'
        check = {"kind": "words", "accepted": [word[-1]]}
        yield exact("spelling", prompt, check, word[-1])
    for word in words[18:24]:
        prompt = f'How many letters has the word "{word}"? Answer with a number.'
        yield number("spelling", prompt, len(word))
    for word in words[24:30]:
        prompt = f'Write "{word}" in capital letters, nothing else.'
        check = {"kind": "format", "rules": [["equals", word], ["upper_case"]]}
        yield exact("spelling", prompt, check, word.upper())
    for word in [word for word in words if len(word) == 5][:4]:
        backwards = word[::-1]
        prompt = f'Spell "{word}" backwards. Only the reversed letters, please.'
        check = {"kind": "words", "accepted": [backwards, "-".join(backwards)]}
        yield exact("spelling", prompt, check, backwards)
    for word in random.sample(WORDS, 6):
        others = random.sample(sorted(set("abcdefghijklmnoprstuvwy") - set(word)), 3)
        question = f'Which letter occurs in the word "{word}"?'
        opening = f'In the word "{word}" there is the letter'
        yield choice("spelling", question, opening, random.choice(word), others)


# ---- code ----------------------------------------------------------------------------------------------


def code(random: Random) -> Iterator[Row]:
    """What short lines of Python print."""
    for a, b in distinct(random, 5, lambda r: (r.randint(2, 20), r.randint(2, 9))):
        question = f"What does this Python line print?\n\nprint({a} + {b})"
        yield choice("code", question, "It prints", str(a + b), near(random, a + b))
    for word in random.sample(WORDS, 5):
        question = f'What is the value of len("{word}") in Python?'
        wrong = [str(n) for n in (1, 3, 9, 12)]
        yield choice("code", question, "The value is", str(len(word)), wrong)
    for values in distinct(random, 5, lambda r: tuple(r.sample(range(1, 30), 4))):
        place = random.randrange(4)
        shown = ", ".join(map(str, values))
        wrong = [str(v) for i, v in enumerate(values) if i != place]
        question = f"In Python, values = [{shown}]. What is values[{place}]?"
        opening = f"values[{place}] is"
        yield choice("code", question, opening, str(values[place]), wrong)
    for a, b in distinct(random, 4, lambda r: (r.randint(3, 9), r.randint(2, 6))):
        prompt = f"What is printed by the Python code print({a} * {b})? Only the output."
        yield number("code", prompt, a * b)
    for word in random.sample(WORDS, 4):
        times = random.randint(2, 3)
        prompt = f'Give only the output of this Python line: print("{word}" * {times})'
        check = {"kind": "words", "accepted": [word * times]}
        yield exact("code", prompt, check, word * times, LONGER)
    for a, b, c in distinct(random, 4, lambda r: tuple(sorted(r.sample(range(1, 15), 3)))):
        lines = f"x = {a}\nx = x + {b}\nx = x + {c}\nprint(x)"
        prompt = f"Which number does this program print?\n\n{lines}\n\nNumber only."
        yield number("code", prompt, a + b + c)
    for values in distinct(random, 4, lambda r: tuple(r.sample(range(1, 40), 3))):
        name = random.choice(("max", "min"))
        value = max(values) if name == "max" else min(values)
        prompt = f"Evaluate the Python expression {name}({not_last(values, value)}) and give its value alone."
        yield number("code", prompt, value)
