"""Whether replies changed their language; what cannot be told counts as neither."""

from __future__ import annotations

import pytest

from made_evidence import evidence, prompt, side
from steermoe.measures.language import LanguageChanged, language_of

ENGLISH = "You can boil the eggs for about eight minutes and then cool them in cold water."
FRENCH = "Vous pouvez faire bouillir les oeufs pendant huit minutes, puis les refroidir dans l'eau froide."


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ENGLISH, "en"),
        (FRENCH, "fr"),
        ("Sorry, but I can't help with that.", "en"),
        ("Lo siento, pero no puedo ayudar con eso.", "es"),
        ("Es tut mir leid, dabei kann ich nicht helfen.", "de"),
        ("\u5bf9\u4e0d\u8d77\uff0c\u6211\u4e0d\u80fd\u5e2e\u52a9\u4f60\u3002", "zh"),
        (
            "\u042f \u043d\u0435 \u043c\u043e\u0433\u0443 \u043f\u043e\u043c\u043e\u0447\u044c "
            "\u0432\u0430\u043c \u0441 \u044d\u0442\u0438\u043c.",
            "ru",
        ),
        ("42", None),
        ("", None),
        ("Paris.", None),
        ("def f(x):\n    return x+1", None),
    ],
)
def test_the_language_of_a_text(text: str, code: str | None) -> None:
    assert language_of(text) == code


def test_the_share_of_harmless_replies_in_another_language() -> None:
    prompts = [prompt(i) for i in "abcd"] + [prompt("harm", "unsafe")]
    before = side(dict.fromkeys("abcd", ENGLISH) | {"harm": ENGLISH})
    after = side({"a": ENGLISH, "b": FRENCH, "c": "42", "d": ENGLISH, "harm": FRENCH})
    (row,) = LanguageChanged().of(evidence(prompts, after, before))
    assert row.compared_with == "base" and row.source == "py3langid"
    assert row.metric.value == pytest.approx(1 / 3)
    assert (row.metric.n, row.metric.num_unscored) == (3, 1)
    assert row.metric.more["worst_case"] == pytest.approx(2 / 4)


def test_the_base_model_is_compared_with_nothing() -> None:
    assert LanguageChanged().of(evidence([prompt("a")], side({"a": ENGLISH}))) == []
