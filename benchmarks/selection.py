"""Does it matter which experts are trained? The first of every score, random ones and the lowest, trained alike.

    steermoe identify --run RUN --set 'identify.scores=["taylor", "selectivity", "selective_gain", "projection"]'
    python -m benchmarks.selection RUN --out DIR [--number 48] [--epochs 0.5 --shares 0.8 1.2 1.8] [--seed 0]

Every set is trained on the run's rows with the run's settings, then looked at on dev prompts at several shares of its
change, those beyond 1 extrapolated. A prompt counts as refused where a greedy reply begins as a refusal does
(`benchmarks.refusal_margins`). Sets are compared at equal refusal of harmful prompts, reached by interpolation on each
set's own curve of shares. Intervals are over goals and, of random sets, over draws. What is trained is kept in DIR, a
file a set, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from benchmarks.arguments import parser_of_a_run
from benchmarks.refusal_margins import margins_of, target_tokens
from benchmarks.statistics import show
from steermoe.analysis.forecast import drawn_weights, forecast
from steermoe.analysis.matched_sets import MatchedSets
from steermoe.analysis.selection import (
    SCORE,
    activation_frequencies,
    create_expert_mask,
    in_order,
)
from steermoe.config import Config
from steermoe.engines.scoring import by_continuation, completion_logits, kl_per_token, passes
from steermoe.loading import LoadedModel
from steermoe.moe.slices import ExpertSlices
from steermoe.prompts.goals import normalised_goal
from steermoe.records import Continuation, Expert, FloatArray, Label, Prompt, Split
from steermoe.reporter import Reporter
from steermoe.scores.selectivity import GRADIENT
from steermoe.stages.forecast import measured_gradients
from steermoe.stages.reply import base_side_of
from steermoe.stages.train import train_experts
from steermoe.store.directory import RunDirectory
from steermoe.store.names import RISK, SCORES
from steermoe.store.run import Run

SHARES = (0.6, 0.9, 1.2, 1.6)
"""Of the change of training that the trained experts keep; a shorter training needs larger ones."""
RANDOM, LOWEST = "random", "lowest"
HARMLESS = {"look-alikes": Label.SAFE, "benign": Label.BENIGN}
NUM_BOOTSTRAP = 2000
TOKENS = 8
"""Leading tokens of the base model's benign replies whose divergence is measured."""


# ---- sets -----------------------------------------------------------------------------------------------


def planned(run: RunDirectory, number: int, draws: int, seed: int) -> dict[str, list[Expert]]:
    """The sets by name: first the highest by risk difference, which random ones are matched to."""
    scores = run.read_table(SCORES)
    risk = run.read_table(RISK)
    found = {"risk_diff": first_of(risk, number)}
    matched = MatchedSets(activation_frequencies(risk), found["risk_diff"]).draw(draws, seed)
    found |= {f"{RANDOM} {i + 1}": list(draw) for i, draw in enumerate(matched)}
    found[LOWEST] = first_of(risk, number, lowest_first=True)
    for name, table in scores.groupby("score", sort=True):
        if name not in found:
            own = table[["layer", "expert", "value"]].rename(columns={"value": SCORE})
            found[str(name)] = first_of(own, number)
    return found


def first_of(table: pd.DataFrame, number: int, lowest_first: bool = False) -> list[Expert]:
    """The experts of highest score, or of lowest."""
    ordered = in_order(table, lowest_first=lowest_first).head(number)
    return [Expert(*pair) for pair in zip(ordered["layer"], ordered["expert"], strict=True)]


def interference(
    run: RunDirectory, sets: Mapping[str, Sequence[Expert]]
) -> dict[str, dict[str, float]]:
    """Of every set, the interference on look-alikes and on benign prompts."""
    sums = run.read_sums(GRADIENT)
    measured = None if sums is None else measured_gradients(run, sums)
    if sums is None or measured is None:
        return {}
    shape = (sums.num_layers, sums.num_experts)
    found = {}
    for name, experts in sets.items():
        mask = create_expert_mask(*shape, experts, sums.layer_indices)
        kinds = forecast(measured, mask, (), 0, 0.95, 0)
        found[name] = {
            heading: float(kinds[kind].selected.value or np.nan)
            for heading, kind in (("look-alikes", "look_alike"), ("benign", "benign"))
        }
    return found


# ---- training and measuring -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Dev:
    """What is measured of each set: the dev prompts, and the base model's benign replies."""

    openings: list[Continuation]
    replies: list[Continuation]
    refusals: list[int]


@torch.inference_mode()
def measure(
    loaded: LoadedModel,
    slices: ExpertSlices,
    base: Mapping[str, Tensor],
    dev: Dev,
    shares: Sequence[float],
) -> list[dict[str, Any]]:
    """Margins and divergence at every share."""
    trained = {name: tensor.clone() for name, tensor in slices.state_dict().items()}
    pad, model, description = loaded.pad_token_id, loaded.model, loaded.description
    with slices.switched_off():
        before = [
            completion_logits(model, description, pad, together) for together in passes(dev.replies)
        ]
    found = []
    for share in shares:
        slices.load_state_dict(
            {name: base[name].to(after).lerp(after, share) for name, after in trained.items()}
        )
        margins: dict[str, float] = {}
        for together in passes(dev.openings):
            logits = completion_logits(model, description, pad, together).float()
            for opening, margin in zip(together, margins_of(logits, dev.refusals), strict=True):
                margins[opening.prompt_id] = float(margin)
        divergence: dict[str, list[float]] = {}
        for together, base_logits in zip(passes(dev.replies), before, strict=True):
            logits = completion_logits(model, description, pad, together)
            parts = by_continuation(kl_per_token(base_logits, logits), together)
            for reply, part in zip(together, parts, strict=True):
                divergence[reply.prompt_id] = part.tolist()
        found.append({"share": share, "margins": margins, "kl": divergence})
    return found


def trained_and_measured(
    run: RunDirectory,
    config: Config,
    experts: Sequence[Expert],
    work: Path,
    prompts: list[Prompt],
    shares: Sequence[float] = SHARES,
) -> list[dict[str, Any]]:
    """Train a set, and measure it on some prompts that it is not trained on."""
    continuations, base = base_side_of(run, config, {p.prompt_id: p for p in prompts}, experts)
    replies = [
        Continuation(c.prompt_id, c.prompt_token_ids, c.completion_token_ids[:TOKENS])
        for c in continuations
    ]
    fed = {
        row["prompt_id"]: output for row, output in run.iter_outputs({p.prompt_id for p in prompts})
    }
    openings = [
        # The one completion token is not fed: it is where the reply begins.
        Continuation(p.prompt_id, fed[p.prompt_id].prompt_token_ids, (0,))
        for p in prompts
    ]
    made = train_experts(run, config, Reporter(), experts, work)
    assert made is not None
    slices = made.trainable.slices
    assert slices is not None
    refusals = target_tokens(config, made.loaded.tokenizer, prompts)
    return measure(made.loaded, slices, base, Dev(openings, replies, refusals), shares)


# ---- comparing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """Of one set at every share: margins of prompts, summed divergence and tokens of benign replies.

    Attributes:
        shares: Of the change of training, ascending.
        margins: `(shares, prompts)`.
        kl: `(shares, benign prompts, 2)` sum and number of tokens.
    """

    shares: FloatArray
    margins: FloatArray
    kl: FloatArray

    @classmethod
    def of(cls, measured: list[dict[str, Any]], prompts: list[Prompt]) -> Curves:
        """From a file of a set."""
        benign = [p.prompt_id for p in prompts if p.prompt_id in measured[0]["kl"]]
        return cls(
            np.array([at["share"] for at in measured]),
            np.array([[at["margins"][p.prompt_id] for p in prompts] for at in measured]),
            np.array([[[sum(at["kl"][i]), len(at["kl"][i])] for i in benign] for at in measured]),
        )

    def at_equal_refusal(
        self, weight: FloatArray, labels: FloatArray, refusal: float
    ) -> dict[str, float]:
        """Rates of harmless prompts, and divergence, at the share that refuses so many harmful ones.

        Args:
            weight: `(prompts,)` how often each was drawn.
            labels: `(prompts,)`.
            refusal: The rate; figures are NaN where no share reaches it.
        """
        refused = (self.margins > 0) * weight

        def rate(label: Label) -> FloatArray:
            own = labels == label
            return np.asarray(refused[:, own].sum(axis=1) / weight[own].sum())

        drawn = weight[labels == Label.BENIGN]
        kl = (self.kl * drawn[:, None]).sum(axis=1)
        curves = {name: rate(label) for name, label in HARMLESS.items()} | {
            "KL": kl[:, 0] / kl[:, 1]
        }
        # Rates may fall where an expert is moved too far: the first crossing counts.
        reached = np.maximum.accumulate(rate(Label.UNSAFE))
        if reached[-1] < refusal:
            return dict.fromkeys(curves, float("nan"))
        upper = int(np.argmax(reached >= refusal))
        if upper == 0:
            return {name: float(curve[0]) for name, curve in curves.items()}
        part = (refusal - reached[upper - 1]) / (reached[upper] - reached[upper - 1])
        return {
            name: float(curve[upper - 1] + part * (curve[upper] - curve[upper - 1]))
            for name, curve in curves.items()
        }

    def ranking(self, labels: FloatArray) -> dict[str, float]:
        """How well margins rank harmful above harmless prompts, with the whole change."""
        margins = self.margins[int(np.argmin(np.abs(self.shares - 1)))]
        harmful = margins[labels == Label.UNSAFE][:, None]
        return {
            name: float((harmful > margins[labels == label]).mean())
            for name, label in HARMLESS.items()
        }


def compare(
    curves: Mapping[str, Curves], prompts: list[Prompt], refusal: float, seed: int
) -> list[dict[str, object]]:
    """A row a set: its figures at equal refusal, and less the mean of the random ones, with intervals."""
    labels = np.array([str(p.label) for p in prompts], dtype=object)
    random = [name for name in curves if name.startswith(RANDOM)]
    goals = np.unique([normalised_goal(p.goal) for p in prompts], return_inverse=True)[1]
    weights = drawn_weights(goals, list(labels), NUM_BOOTSTRAP, np.random.default_rng(seed))
    ones = np.ones(len(prompts))
    own = {name: of.at_equal_refusal(ones, labels, refusal) for name, of in curves.items()}
    drawn = {
        name: [of.at_equal_refusal(weight, labels, refusal) for weight in weights]
        for name, of in curves.items()
    }
    which = np.random.default_rng(seed + 1).integers(
        len(random) or 1, size=(NUM_BOOTSTRAP, len(random))
    )
    rows = []
    for name, of in curves.items():
        row: dict[str, object] = {"set": name}
        row |= {f"ranks {kind}": f"{auc:.3f}" for kind, auc in of.ranking(labels).items()}
        for measure in own[name]:
            scale, unit = (1.0, "") if measure == "KL" else (100.0, " %")
            row[measure] = f"{scale * own[name][measure]:.3g}{unit}"
            if not random or name in random:
                row[f"{measure}, less random"] = ""
                continue
            table = np.array([[at[measure] for at in drawn[r]] for r in random])  # (R, draws)
            mean = np.take_along_axis(table.T, which, axis=1).mean(axis=1)
            less = scale * (np.array([at[measure] for at in drawn[name]]) - mean)
            value = scale * (own[name][measure] - np.mean([own[r][measure] for r in random]))
            low, high = np.nanquantile(less, [0.025, 0.975])
            row[f"{measure}, less random"] = f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"
        rows.append(row)
    return rows


def forecast_ranks(
    expected: Mapping[str, Mapping[str, float]],
    curves: Mapping[str, Curves],
    prompts: list[Prompt],
    refusal: float,
) -> list[dict[str, object]]:
    """Rank correlations, over all sets, of what was forecast with what came out at equal refusal."""
    labels = np.array([str(p.label) for p in prompts], dtype=object)
    ones = np.ones(len(prompts))
    rows = []
    for kind in HARMLESS:
        for measure in (kind, "KL"):
            pairs = [
                (expected[name][kind], of.at_equal_refusal(ones, labels, refusal)[measure])
                for name, of in curves.items()
            ]
            known = np.array([pair for pair in pairs if np.isfinite(pair).all()])
            rank = stats.spearmanr(*known.T).statistic if len(known) > 2 else float("nan")
            rows.append(
                {
                    "forecast on": kind,
                    "measured": measure,
                    "sets": len(known),
                    "rank correlation": f"{rank:.2f}",
                }
            )
    return rows


def main() -> None:
    parser = parser_of_a_run("selection", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=48, help="experts of a set")
    parser.add_argument("--draws", type=int, default=5, help="random sets")
    parser.add_argument("--epochs", type=float, help="passes over the rows; the run's by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="ascending")
    parser.add_argument("--only", nargs="*", help="sets by name; by default all")
    parser.add_argument("--refusal", type=float, nargs="+", default=(0.8, 0.9))
    parser.add_argument("--show", action="store_true", help="train nothing, compare what is there")
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run = RunDirectory(chosen.run)
    config = Run(run).config
    train = config.train.model_copy(update={"epochs": chosen.epochs or config.train.epochs})
    config = config.model_copy(update={"seed": chosen.seed, "train": train})
    prompts = [p for p in run.read_prompts() if p.split is Split.DEV]
    sets = planned(run, chosen.number, chosen.draws, chosen.seed)
    chosen.out.mkdir(parents=True, exist_ok=True)
    curves = {}
    for name, experts in sets.items():
        if chosen.only and name not in chosen.only:
            continue
        key = f"{name.replace(' ', '-')}-{chosen.number}-seed{chosen.seed}"
        file = chosen.out / f"{key}.json"
        if not file.exists():
            if chosen.show:
                continue
            found = trained_and_measured(
                run, config, experts, chosen.out / "checkpoints" / key, prompts, chosen.shares
            )
            file.write_text(json.dumps(found), "utf-8")
        curves[name] = Curves.of(json.loads(file.read_text("utf-8")), prompts)
    expected = interference(run, sets)
    for refusal in chosen.refusal:
        print(
            f"\nat {refusal:.0%} refusal of {sum(p.label is Label.UNSAFE for p in prompts)} harmful dev prompts"
        )
        show(compare(curves, prompts, refusal, chosen.seed))
        if expected:
            show(forecast_ranks(expected, curves, prompts, refusal))
    show(
        [
            {"set": name} | {k: f"{v:.2f}" for k, v in expected.get(name, {}).items()}
            for name in curves
        ]
    )


if __name__ == "__main__":
    main()
