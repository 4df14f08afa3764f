"""A run directory, typed: what each of its files holds. What is of replies is in `reply_files`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from steermoe.analysis.ablation_figures import AblationFigures
from steermoe.errors import RunDirectoryError
from steermoe.metrics import Evaluation, MeasureRow
from steermoe.records import Judgement, Label, Prompt, Split
from steermoe.store.controls_file import ControlFigures
from steermoe.store.forecast_file import Forecast
from steermoe.store.measure_table import from_measures, to_measures
from steermoe.store.names import (
    ABLATION,
    CHECKPOINTS,
    CONTROL_FIGURES,
    EVALUATION,
    FORECAST,
    MEASURES,
    PROMPTS,
    RESULTS,
    RUN_JSON,
    SHARDS,
    UNSAFE_EXPERTS,
    VERDICTS,
    scored_of,
)
from steermoe.store.reply_files import ReplyFiles
from steermoe.store.response_tables import SCORED_SCHEMA, VERDICTS_SCHEMA
from steermoe.store.selection_file import ExpertSet
from steermoe.store.state import SCHEMA_VERSION, RunState


class RunDirectory(ReplyFiles):
    """One run's files, by what they hold."""

    # ---- the run as a whole ---------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.file(RUN_JSON).is_file()

    @property
    def has_results(self) -> bool:
        """Whether anything was collected here, or is being collected; prompts alone are no result."""
        return any(self.has(name) for name in (SHARDS, *RESULTS))

    def check_not_foreign(self) -> None:
        """Check that no file without a run would be overwritten, or taken for the run's own.

        Raises:
            RunDirectoryError: There is no `run.json`, but something under a name that a run writes.
        """
        names = [PROMPTS, *RESULTS, SHARDS, CHECKPOINTS]
        found = [name for name in names if not self.exists and self.has(name)]
        if found:
            raise RunDirectoryError(
                f"{self.path} holds {', '.join(found)} but no run ({RUN_JSON} is missing), and a run would overwrite "
                "it; choose another --run"
            )

    def read_state(self) -> RunState:
        """`run.json`.

        Raises:
            RunDirectoryError: There is no run here, it has another schema version, or it is damaged.
        """
        if not self.exists:
            raise RunDirectoryError(
                f"no run in {self.path}: {RUN_JSON} is missing; start one with steermoe run"
            )
        found = self.read_json(RUN_JSON)
        version = found.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunDirectoryError(
                f"run directory {self.path} has schema version {version}, this steermoe reads {SCHEMA_VERSION}; "
                "choose another with --run"
            )
        try:
            state, damaged = RunState.model_validate(found), ""
        except ValidationError as error:
            state, damaged = None, ".".join(map(str, error.errors()[0]["loc"]))
        for name, record in state.stages.items() if state is not None else ():
            if record.status == "done" and record.seconds is None:
                damaged = f"stages.{name}.seconds"
        if state is None or damaged:
            raise RunDirectoryError(
                f"{RUN_JSON} in {self.path} is damaged at {damaged}; choose another with --run"
            )
        return state

    def write_state(self, state: RunState) -> None:
        """Write `run.json` whole."""
        self.write_json(RUN_JSON, state.model_dump(mode="json"))

    # ---- unfinished work ------------------------------------------------------------------------

    def has_unfinished(self, pattern: str) -> bool:
        """Whether an interrupted attempt left something to go on from."""
        return bool(pattern) and any(True for _ in self.path.glob(pattern))

    def remove_unfinished(self, pattern: str) -> None:
        """Remove what an attempt would go on from."""
        for path in list(self.path.glob(pattern)) if pattern else ():
            self._delete(path)
        with suppress(OSError):
            self.file(SHARDS).rmdir()

    # ---- prompts --------------------------------------------------------------------------------

    def write_prompts(self, prompts: Sequence[Prompt], name: str = PROMPTS) -> None:
        """Write `prompts.jsonl`, or the prompts of a set: the fields of the records, by name."""
        self.write_json_lines(
            name,
            (
                {f.name: prompt[f.name] for f in fields(prompt)}
                | {"messages": [dict(message) for message in prompt.messages]}
                for prompt in prompts
            ),
        )

    def read_prompts(self, name: str = PROMPTS) -> tuple[Prompt, ...]:
        """Read `prompts.jsonl`, or the prompts of a set."""
        prompts = []
        with self.reading(name) as path, path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                row = json.loads(line)
                row |= {"messages": tuple(row["messages"]), "label": Label(row["label"])}
                row["split"] = Split(row["split"]) if row["split"] else None
                prompts.append(Prompt(**row))
        return tuple(prompts)

    # ---- what is said of replies ----------------------------------------------------------------

    def write_verdicts(
        self, judgements: Mapping[tuple[str, str, str], Judgement], variants: Sequence[str]
    ) -> None:
        """Put the judgements of some variants into `verdicts.parquet`; those of others stay.

        Args:
            judgements: By `(variant, prompt_id, judge)`.
            variants: Those whose earlier judgements are replaced.
        """
        rows = []
        if self.has(VERDICTS):
            before = self.read_table(VERDICTS)
            rows = before[~before["variant"].isin(variants)].to_dict("records")
        rows += [
            {
                "variant": variant,
                "prompt_id": prompt_id,
                "judge": judge,
                "verdict": str(found.verdict),
                "score": found.score,
                "reason": found.reason,
            }
            for (variant, prompt_id, judge), found in judgements.items()
        ]
        for row in rows:
            row["score"] = None if row["score"] != row["score"] else row["score"]
        with self.writing(VERDICTS) as path:
            pq.write_table(pa.Table.from_pylist(rows, VERDICTS_SCHEMA), path)

    def has_verdicts(self, variant: str, judge: str) -> bool:
        """Whether a judge has judged a variant's replies."""
        if not self.has(VERDICTS):
            return False
        table = self.read_table(VERDICTS)
        return bool(((table["variant"] == variant) & (table["judge"] == judge)).any())

    def read_verdicts(self, variant: str, judge: str) -> dict[str, str]:
        """The verdicts of one judge on a variant's replies, by prompt id, in the order of the replies.

        Raises:
            RunDirectoryError: There are none.
        """
        table = self.read_table(VERDICTS)
        rows = table[(table["variant"] == variant) & (table["judge"] == judge)]
        if rows.empty:
            raise RunDirectoryError(
                f"{self.file(VERDICTS)} has no verdicts of the judge {judge} on the replies of the variant {variant}: "
                f"run `steermoe judge --run {self.path}` first"
            )
        return dict(zip(rows["prompt_id"], rows["verdict"], strict=True))

    def read_judged(self, variant: str, judge: str) -> pd.DataFrame:
        """A variant's replies, with the verdicts of one judge as the column `verdict`."""
        replies = self.read_replies(variant)
        verdicts = self.read_verdicts(variant, judge)
        if missing := [i for i in replies["prompt_id"] if i not in verdicts]:
            raise RunDirectoryError(
                f"the judge {judge} has no verdict on {len(missing)} replies of the variant {variant} in {self.path}: "
                "run steermoe judge again"
            )
        return replies.assign(verdict=replies["prompt_id"].map(verdicts))

    def write_scored(self, variant: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what was measured of a variant by feeding it texts: columns of `SCORED_SCHEMA`."""
        with self.writing(scored_of(variant)) as path:
            pq.write_table(pa.Table.from_pylist([dict(r) for r in rows], SCORED_SCHEMA), path)

    def read_scored(self, variant: str) -> pd.DataFrame:
        """What was measured of a variant by feeding it texts."""
        return self.read_table(scored_of(variant))

    # ---- experts, measures ----------------------------------------------------------------------

    def write_selection(self, selection: ExpertSet) -> None:
        """Write `unsafe_experts.json`."""
        self.write_json(UNSAFE_EXPERTS, selection.as_json())

    def read_selection(self) -> ExpertSet:
        """`unsafe_experts.json`."""
        with self.reading(UNSAFE_EXPERTS):
            return ExpertSet.from_json(self.read_json(UNSAFE_EXPERTS))

    def read_forecast(self) -> Forecast:
        """`forecast.json`."""
        with self.reading(FORECAST):
            return Forecast.from_json(self.read_json(FORECAST))

    def read_controls(self) -> ControlFigures:
        """`controls.json`."""
        with self.reading(CONTROL_FIGURES):
            return ControlFigures.from_json(self.read_json(CONTROL_FIGURES))

    def write_measures(self, rows: Sequence[MeasureRow]) -> None:
        """Write `measures.parquet`."""
        with self.writing(MEASURES) as path:
            pq.write_table(from_measures(rows), path)

    def read_measures(self) -> list[MeasureRow]:
        """`measures.parquet`."""
        with self.reading(MEASURES) as path:
            return to_measures(pq.read_table(path))

    def read_evaluation(self) -> Evaluation:
        """`evaluation.json`."""
        return cast("Evaluation", self.read_json(EVALUATION))

    def read_ablation(self) -> AblationFigures:
        """`ablation.json`."""
        return cast("AblationFigures", self.read_json(ABLATION))
