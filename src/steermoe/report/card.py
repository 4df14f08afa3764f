"""The figures of an evaluation in the hardened model's card, which training has written."""

from __future__ import annotations

from steermoe.report.side_by_side import markdown
from steermoe.store.directory import RunDirectory
from steermoe.store.names import EVALUATION, MODEL_CARD

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
"""What is between them is written anew by each report; what a user writes around them stays."""


def write_card_figures(run: RunDirectory, confidence: float) -> None:
    """Put the figures of both models into the card, in the place of earlier ones; none where nothing was evaluated.

    Args:
        run: The run; without a hardened model nothing is done.
        confidence: Level of the intervals.
    """
    if not run.has(MODEL_CARD):
        return
    with run.reading(MODEL_CARD) as path:
        card = path.read_text("utf-8")
    before, _, rest = card.partition(BEGIN)
    parts = [before.rstrip()]
    if run.has(EVALUATION):
        figures = markdown(run.read_evaluation(), confidence)
        parts += [f"{BEGIN}\n## Figures\n\n{figures}\n{END}"]
    if after := rest.partition(END)[2].strip():
        parts.append(after)
    text = "\n\n".join(parts) + "\n"
    if text != card:
        with run.writing(MODEL_CARD) as path:
            path.write_text(text, "utf-8", newline="\n")
