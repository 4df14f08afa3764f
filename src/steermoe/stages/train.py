"""Train: the selected experts, towards refusal, held to the base model on everything harmless."""

from __future__ import annotations

import gc
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from steermoe.analysis.risk import expert_label
from steermoe.analysis.selection import create_expert_mask
from steermoe.config import Config
from steermoe.errors import RunDirectoryError
from steermoe.loading import LoadedModel, load_model, model_source
from steermoe.moe.checkpoint import save_hardened, verify_only_selected_changed
from steermoe.moe.partial_passes import LowerLayers
from steermoe.moe.slices import (
    ExpertSlices,
    attach_expert_slices,
    train_everything,
    train_routers_only,
)
from steermoe.records import NO_BATCH, BoolArray, Expert, Label, Output, Prompt, Split, Verdict
from steermoe.reporter import Bar, Reporter
from steermoe.stages.model_card import model_card
from steermoe.store.directory import RunDirectory
from steermoe.store.files import disk_error
from steermoe.store.names import BASE, CHECKPOINTS, MODEL, SFT_DATASET
from steermoe.store.state import Figures
from steermoe.training.arguments import training_arguments
from steermoe.training.base_replies import BaseReplies
from steermoe.training.dataset import (
    MicroBatches,
    TrainingRow,
    collate,
    needs_refusal,
    refusal_row,
    resolve_target,
    retention_row,
)
from steermoe.training.lower_states import LowerStates
from steermoe.training.trainer import TRAINED_WEIGHTS, ExpertMaskingTrainer, LossWeights

FEW_STEPS = 20
"""Half of what the embedded model takes; fewer are worth a word."""


def train(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Fine-tune the selected experts and write the hardened checkpoint.

    Writes `sft_dataset.jsonl` and `model/`. Where no expert was selected it trains nothing and says so.

    Returns:
        Figures for `run.json`.
    """
    experts = run.read_selection().chosen(config.train.experts)
    if not experts and config.train.parameters == "experts":
        run.remove(MODEL)
        run.remove(SFT_DATASET)
        reporter.note("no unsafe experts were selected, so nothing is trained")
        return {"num_trained_experts": 0, "trained_experts": []}
    source = model_source(config.model, reporter.line)
    loaded = load_model(config.model, source, report=reporter.line)
    rows, benign, left_out = training_rows(run, config, loaded.tokenizer)
    dataset = MicroBatches(
        rows, benign, config.train.batch_size, config.train.benign_per_batch, config.seed
    )
    objectives = Counter(row.objective for row in rows)
    reporter.line(
        f"training {_what(config, experts)} on {objectives['refusal']} refusals, {objectives['retention']} harmless "
        f"replies and {len(benign)} benign ones, in {len(dataset)} micro-batches"
    )
    for reason, count in sorted(left_out.items()):
        reporter.note(f"{count} prompts {reason} and are not trained on")
    slices = _choose_parameters(loaded.model, experts, config)
    history = _fit(run, config, reporter, loaded, slices, dataset, experts)
    # Only now: settings that the trainer refuses must leave the finished run as it is.
    run.write_json_lines(SFT_DATASET, (row.as_sft() for row in [*rows, *benign]))
    gc.collect()  # the trainer and its moments sit in reference cycles, and saving needs room
    num_parameters = slices.num_parameters if slices is not None else None
    if slices is None and config.train.kept_change < 1:
        reporter.note(
            f"train.kept_change is {config.train.kept_change:g}, but a baseline keeps its whole change"
        )
    if slices is not None:
        slices.fold(config.train.kept_change)
        slices.detach()
    with run.writing_folder(MODEL) as folder:
        save_hardened(loaded.model, loaded.tokenizer, folder)
        (folder / "README.md").write_text(model_card(config, run, experts), "utf-8")
        if config.train.parameters == "experts":
            report = verify_only_selected_changed(
                source, folder, experts, revision=config.model.revision
            )
            reporter.line(
                f"checked: {report.num_compared} tensors compared, only the selected experts' differ from the base"
            )
    return {
        "num_trained_experts": len(experts) if config.train.parameters == "experts" else None,
        # Another selection may be made later; the hardened model stays what it is.
        "trained_experts": experts if config.train.parameters == "experts" else [],
        "num_trained_parameters": num_parameters,
        "history": history,
    }


def training_rows(
    run: RunDirectory, config: Config, tokenizer: Any
) -> tuple[list[TrainingRow], list[TrainingRow], Counter[str]]:
    """Rows of the train split: those of mixed batches, the benign ones to spread, and how many were left out why.

    Micro-batches are the mixed batches of the analysis, so prompts that filled none are left out.
    """
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    train_ids = {p.prompt_id for p in prompts.values() if p.split is Split.TRAIN}
    target = resolve_target(config.train.target_response)
    rows: list[TrainingRow] = []
    benign: list[TrainingRow] = []
    left_out: Counter[str] = Counter()
    num_refusals = 0
    verdicts = run.read_verdicts(BASE, config.judge.main)
    for row, output in run.iter_outputs(train_ids):
        prompt = prompts[row["prompt_id"]]
        batch_idx = int(row["batch_idx"])
        if batch_idx == NO_BATCH and prompt.label is not Label.BENIGN:
            left_out["are in no mixed batch"] += 1
            continue
        made = _row(
            prompt,
            Verdict(verdicts[prompt.prompt_id]),
            output,
            batch_idx,
            tokenizer,
            config,
            target,
            num_refusals,
        )
        if not made.completion_token_ids:
            left_out["have an empty reply"] += 1
        elif prompt.label is Label.BENIGN:
            benign.append(made)
        else:
            rows.append(made)
            num_refusals += made.objective == "refusal"
    return rows, benign, left_out


def _row(
    prompt: Prompt,
    verdict: Verdict,
    output: Output,
    batch_idx: int,
    tokenizer: Any,
    config: Config,
    target: Any,
    position: int,
) -> TrainingRow:
    if needs_refusal(prompt, verdict):
        return refusal_row(
            prompt.prompt_id,
            prompt.label,
            batch_idx,
            prompt.messages,
            target(prompt, position),
            tokenizer,
            config.model.chat_template_kwargs,
        )
    return retention_row(
        prompt.prompt_id, prompt.label, batch_idx, output, config.train.retention_tokens
    )


def _choose_parameters(
    model: Any, experts: Sequence[Expert], config: Config
) -> ExpertSlices | None:
    if config.train.parameters == "experts":
        return attach_expert_slices(model, experts)
    if config.train.parameters == "routers":
        train_routers_only(model)
    else:
        train_everything(model)
    return None


def _fit(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    loaded: LoadedModel,
    slices: ExpertSlices | None,
    dataset: MicroBatches,
    experts: Sequence[Expert],
) -> list[dict[str, Any]]:
    """Run the trainer, from its last checkpoint if there is one."""
    settings = config.train
    folder = run.file(CHECKPOINTS)
    num_steps = settings.num_steps(len(dataset))
    if num_steps < FEW_STEPS:
        reporter.note(
            f"{num_steps} training steps are few; raise train.epochs ({settings.epochs:g} now) if too little is refused"
        )
    on_cpu = next(loaded.model.parameters()).device.type == "cpu"
    arguments = training_arguments(settings, config.seed, folder, num_steps, on_cpu)
    base_model = None
    if slices is None and settings.retention_weight > 0:
        base_model = load_model(config.model, loaded.source).model
    lower_states = base_replies = None
    if slices is not None:
        lower_states = _lower_states(loaded, slices, dataset, settings.epochs, reporter)
        if settings.retention_weight > 0:
            base_replies = BaseReplies.of_training_rows(
                loaded.model, slices, dataset.rows(), loaded.tokenizer.pad_token_id, lower_states
            )
    use_cache = getattr(loaded.model.config, "use_cache", None)
    trainer = ExpertMaskingTrainer(
        model=loaded.model,
        args=arguments,
        train_dataset=dataset,
        data_collator=partial(collate, pad_token_id=loaded.tokenizer.pad_token_id),
        expert_mask=_masks(run, config, reporter, loaded, experts),
        mask_scope=settings.mask_scope,
        slices=slices,
        base_model=base_model,
        base_replies=base_replies,
        lower_states=lower_states,
        weights=LossWeights(
            settings.refusal_weight,
            settings.retention_weight,
            settings.first_tokens,
            settings.first_tokens_weight,
            settings.retention_first_tokens_weight,
        ),
    )
    last = _last_whole_checkpoint(folder)
    if last is not None:
        reporter.line(f"train: going on from {Path(last).name}")
    with reporter.bar(num_steps, "train") as bar:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_BarCallback(bar))
        with _saving_checkpoints(folder):
            trainer.train(resume_from_checkpoint=last)
    loaded.model.eval()
    # The trainer switches it off, and the hardened checkpoint would say so for good.
    loaded.model.config.use_cache = use_cache
    # The last entry sums up this process alone, and a resumed run has had another before it.
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _lower_states(
    loaded: LoadedModel,
    slices: ExpertSlices,
    dataset: MicroBatches,
    epochs: float,
    reporter: Reporter,
) -> LowerStates | None:
    """What leaves the layers below the lowest trained one, where rows are seen more than once."""
    first_trained = slices.experts[0][0]
    if epochs <= 1 or first_trained == 0:
        return None
    layers = LowerLayers(loaded.model, loaded.description, first_trained)
    states = LowerStates(loaded.model, layers, dataset.rows(), loaded.tokenizer.pad_token_id)
    if not states.is_usable:
        reporter.line(
            "every layer runs in every step: those below the trained ones cannot be spared"
        )
        return None
    reporter.line(
        f"the {first_trained} decoder layers below the trained ones have run once for every row, and need not again"
    )
    return states


@contextmanager
def _saving_checkpoints(folder: Path) -> Iterator[None]:
    """Tell a disk that fills up from an error of training.

    Raises:
        RunDirectoryError: A checkpoint could not be written.
    """
    try:
        yield
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise RunDirectoryError(
            f"a training checkpoint in {folder} cannot be written: {reason}; free space, and the same command goes on"
        ) from None


def _masks(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    loaded: LoadedModel,
    experts: Sequence[Expert],
) -> BoolArray | dict[int, BoolArray] | None:
    """The expert mask that training applies: the global one, or one for each batch; only trained experts."""
    if config.train.mask_scope == "off":
        return None
    hashed = {layer.index for layer in loaded.description.layers if layer.is_hash_routed}
    if left_out := [pair for pair in experts if pair[0] in hashed]:
        reporter.note(
            f"{len(left_out)} trained experts are looked up by token id; their layers are not masked"
        )
        experts = [pair for pair in experts if pair[0] not in hashed]
    shape = (loaded.description.num_layers, loaded.description.num_experts)
    layers = loaded.description.layer_indices
    if config.train.mask == "global":
        return create_expert_mask(*shape, experts, layers)
    trained = set(experts)
    return {
        batch_idx: create_expert_mask(*shape, [pair for pair in chosen if pair in trained], layers)
        for batch_idx, chosen in run.read_selection().per_batch.items()
    }


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end: one killed half-way is removed."""
    while folder.is_dir():
        last = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]  # transformers left it untyped
        if last is None:
            return None
        if _is_whole(Path(last)):
            return str(last)
        shutil.rmtree(last)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether a process died neither while it wrote a checkpoint nor while it removed it."""
    try:
        # The trainer writes its state last of all, and not under a temporary name.
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    needed = (TRAINED_WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state*.pth")
    return all(any(checkpoint.glob(name)) for name in needed)


def _what(config: Config, experts: Sequence[Expert]) -> str:
    if config.train.parameters != "experts":
        return f"{config.train.parameters} (a baseline)"
    names = ", ".join(expert_label(*expert) for expert in experts[:4])
    which = "the union of the batches' selections: " if config.train.experts == "union" else ""
    return f"{which}{len(experts)} experts ({names}{', ...' if len(experts) > 4 else ''})"


class _BarCallback(TrainerCallback):
    """Moves the progress bar, and shows the loss beside it."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.advance(state.global_step - self.bar.done, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"
