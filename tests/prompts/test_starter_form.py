"""How much the form of a shipped prompt tells of its label: what a model could learn without reading."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest

from near_duplicates import FORM_WORDS, words

FOLDS = 5


def features(text: str) -> list[float]:
    """Which form words occur, and the lengths."""
    tokens = words(text)
    present = set(tokens)
    return [float(word in present) for word in sorted(FORM_WORDS)] + [
        len(tokens) / 10,
        len(text) / 60,
        1.0,
    ]


def fitted(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Logistic regression with a penalty of one, by Newton's method."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        hessian = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + np.eye(len(weights))
        weights -= np.linalg.solve(hessian, inputs.T @ (chance - targets) + weights)
    return weights


@pytest.mark.parametrize(
    ("one", "other", "most"),
    [("unsafe", "safe", 0.62), ("unsafe", "benign", 0.74), ("safe", "benign", 0.71)],
)
def test_form_words_and_length_tell_little(one: str, other: str, most: float) -> None:
    """Accuracy in cross-validation by number, so that a pair is never divided. The datasheet has the figures."""
    text = (files("steermoe.prompts") / "data" / "starter.jsonl").read_text(encoding="utf-8")
    rows = [row for row in map(json.loads, text.splitlines()) if row["label"] in (one, other)]
    inputs = np.array([features(row["prompt"]) for row in rows])
    targets = np.array([float(row["label"] == one) for row in rows])
    numbers = np.array([int(row["prompt_id"][-4:]) for row in rows])
    fold = np.random.default_rng(0).permutation(numbers.max() + 1)[numbers] % FOLDS
    right = 0
    for held in range(FOLDS):
        weights = fitted(inputs[fold != held], targets[fold != held])
        predicted = inputs[fold == held] @ weights > 0
        right += int((predicted == targets[fold == held]).sum())
    accuracy = right / len(rows)
    print(f"{one} / {other}: {accuracy:.3f}")
    assert 0.5 < accuracy <= most
