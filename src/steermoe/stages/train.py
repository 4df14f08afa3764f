"""Train: the selected experts, towards refusal, held to the base model on everything harmless."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from steermoe.analysis.selection import create_expert_mask
from steermoe.config import Config
from steermoe.errors import RunDirectoryError, SteerMoEError
from steermoe.judges.kinds import judge_named, not_refusals
from steermoe.loading import LoadedModel, load_model, model_source, read_tokenizer
from steermoe.moe.checkpoint import save_hardened, verify_only_selected_changed
from steermoe.moe.finite import first_not_finite, is_finite
from steermoe.moe.slices import attach_expert_slices
from steermoe.moe.stored import local_folder
from steermoe.processes import current
from steermoe.records import Expert, Label, Split
from steermoe.reporter import Reporter
from steermoe.stages.model_card import model_card
from steermoe.stages.training_rows import all_rows, rows_for
from steermoe.stages.training_words import say_phase, say_turn
from steermoe.store.directory import RunDirectory
from steermoe.store.files import disk_error
from steermoe.store.names import CHECKPOINTS, MODEL, SFT_DATASET
from steermoe.store.state import Figures
from steermoe.training.dataset import TrainingRow
from steermoe.training.fit import Fit, History
from steermoe.training.forward_plan import ExpertMasks
from steermoe.training.objectives import objectives_of
from steermoe.training.phases import Phase
from steermoe.training.spread import Spread, spread_over
from steermoe.training.targets import resolve_target
from steermoe.training.trainables import Experts, Trainable, trainables_of
from steermoe.training.trainer import diverged

MOST_JUDGED_TARGETS = 20
"""Target responses that are judged before training; a callable may give one for each prompt."""


def train(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Fine-tune the selected experts and write the hardened checkpoint.

    Writes `sft_dataset.jsonl` and `model/`. Where no expert was selected it trains nothing and says so.

    Returns:
        Figures for `run.json`.
    """
    settings = config.train
    experts = run.read_selection().chosen(settings.experts)
    leads = current().is_first
    if not experts and settings.trains_experts and not leads:
        return {}
    if not experts and settings.trains_experts:
        run.remove(MODEL)
        run.remove(SFT_DATASET)
        reporter.note("no unsafe experts were selected, so nothing is trained")
        return {"num_trained_experts": 0, "trained_experts": []}
    if leads:
        _note_not_refusals(run, config, reporter)
    made = train_experts(run, config, reporter, experts, run.file(CHECKPOINTS))
    if not leads or made is None:
        return {}
    trained = made.trainable
    num_parameters = sum(parameter.numel() for _, parameter in trained.named_parameters())
    if not settings.trains_experts and settings.kept_change < 1:
        reporter.note(
            f"train.kept_change is {settings.kept_change:g}, but a baseline keeps its whole change"
        )
    made.fold(settings.kept_change if settings.trains_experts else 1.0)
    # Only now: settings that the trainer refuses, or that spoil the model, must leave the finished run as it is.
    run.write_json_lines(SFT_DATASET, (row.as_sft() for row in all_rows(made.phases)))
    _save(run, config, reporter, made.loaded, trained, experts)
    return {
        "num_trained_experts": len(experts) if settings.trains_experts else None,
        # Another selection may be made later; the hardened model stays what it is.
        "trained_experts": experts if settings.trains_experts else [],
        "num_trained_parameters": num_parameters,
        "history": made.history,
    }


@dataclass(frozen=True, slots=True)
class Trained:
    """A training that is done, and not folded into the model yet.

    Attributes:
        loaded: The model that it was done on.
        trainable: What was trained.
        phases: How.
        history: The figures of its steps.
    """

    loaded: LoadedModel
    trainable: Trainable
    phases: Sequence[Phase]
    history: History

    def fold(self, kept_change: float) -> None:
        """Put what was trained into the model, as it is saved: the masters' change is rounded once, and here.

        Raises:
            TrainingError: The model does not compute numbers any more; nothing is saved yet.
        """
        self.trainable.fold(kept_change)
        self.loaded.as_saved()
        _check_sound(self.loaded, next(all_rows(self.phases)))


def train_experts(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    experts: Sequence[Expert],
    checkpoints: Path,
) -> Trained | None:
    """Train some experts as the settings say, or go on from the checkpoints of an attempt that was interrupted.

    All processes call it, and rank 0 goes on with what was trained.
    """
    with spread_over(config.train) as spread:
        made = _train(run, config, reporter, experts, checkpoints, spread)
        if spread is None or not spread.is_sharded:
            return made
        slices = made.trainable.slices
        assert slices is not None  # nothing else trains sharded
        state = {name: tensor.cpu() for name, tensor in slices.state_dict().items()}
        phases, history = made.phases, made.history
        del made, slices
    if not current().is_first:
        return None
    loaded = load_model(config.model, model_source(config.model))
    whole = attach_expert_slices(loaded.model, experts)
    whole.load_state_dict(state)
    return Trained(loaded, Experts(whole), phases, history)


def _train(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    experts: Sequence[Expert],
    checkpoints: Path,
    spread: Spread | None,
) -> Trained:
    source = model_source(config.model, reporter.line)
    is_sharded = spread is not None and spread.is_sharded
    # What is larger than one device is sharded from main memory, layer by layer.
    settings = config.model.model_copy(update={"device": "cpu"}) if is_sharded else config.model
    loaded = load_model(settings, source, report=reporter.line)
    trained, phases = _phases(run, config, reporter, loaded, experts)
    if spread is not None and is_sharded:
        spread.shard(loaded.model, loaded.description)
    say_turn(reporter, loaded.tokenizer, list(all_rows(phases)))
    fit = Fit(
        loaded.model,
        loaded.description,
        trained,
        _masks(run, config, reporter, loaded, experts),
        loaded.pad_token_id,
        lambda: load_model(config.model, loaded.source).model,
        config.train,
        config.seed,
        checkpoints,
        reporter,
        spread,
    )
    for phase in phases:
        say_phase(reporter, fit, phase, config, experts)
    with _saving_checkpoints(checkpoints):
        history = fit.run(phases)
    gc.collect()  # the trainer and its moments sit in reference cycles, and saving needs room
    return Trained(loaded, trained, phases, history)


def _note_not_refusals(run: RunDirectory, config: Config, reporter: Reporter) -> None:
    """Say which target responses the run's judge would not call a refusal: its rates would not show what was learned.

    Before the model is loaded, for some judges are models too.
    """
    if not any("refusal" in phase.objectives for phase in config.train.all_phases()):
        return
    target = resolve_target(config.train.target_response)
    unsafe = [p for p in run.read_prompts() if p.split is Split.TRAIN and p.label is Label.UNSAFE]
    goals: dict[str, str] = {}
    for position, prompt in enumerate(unsafe):
        goals.setdefault(target(prompt, position), prompt.goal)
    texts = list(goals)[:MOST_JUDGED_TARGETS]
    try:
        judge = judge_named(config.judge.main, config.judge)
        found = not_refusals(judge, texts, [goals[text] for text in texts])
    except SteerMoEError as error:
        reporter.note(
            f"whether the target responses are refusals to the judge is not known: {error}"
        )
        return
    if found:
        reporter.note(
            f"the judge {config.judge.main} would not call {len(found)} of {len(texts)} target responses a refusal, so "
            f"its rates do not show whether they are learned: {found[0]!r}"
        )


def _phases(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    loaded: LoadedModel,
    experts: Sequence[Expert],
) -> tuple[Trainable, list[Phase]]:
    """All that is trained, and the phases of training it."""
    wanted = config.train.all_phases()
    rows_of = {
        names: rows_for(run, config, loaded, names, reporter)
        for names in dict.fromkeys(phase.objectives for phase in wanted)
    }
    trained, of_phases = trainables_of(loaded.model, loaded.description, wanted, experts)
    return trained, [
        Phase(
            trainable,
            objectives_of(config.train, phase.objectives),
            phase.epochs,
            phase.learning_rate,
            *rows_of[phase.objectives],
        )
        for phase, trainable in zip(wanted, of_phases, strict=True)
    ]


@torch.inference_mode()
def _check_sound(loaded: LoadedModel, row: TrainingRow) -> None:
    """Check, before anything is saved, that the trained model computes numbers: the last step may have spoilt it.

    Raises:
        TrainingError: Its weights, or what it says of a row that it was trained on, are not finite.
    """
    if name := first_not_finite(loaded.model):
        raise diverged(f"{name} is not finite in {loaded.model.dtype} after the last step")
    ids = torch.tensor(
        [row.prompt_token_ids + row.completion_token_ids], device=loaded.model.device
    )
    if not is_finite(loaded.model(input_ids=ids, use_cache=False).logits):
        raise diverged("the trained model's logits are not finite after the last step")


def _save(
    run: RunDirectory,
    config: Config,
    reporter: Reporter,
    loaded: LoadedModel,
    trained: Trainable,
    experts: Sequence[Expert],
) -> None:
    """Write the hardened checkpoint, and prove on disk that nothing changed but what was trained."""
    with run.writing_folder(MODEL) as folder:
        tokenizer = read_tokenizer(config.model, loaded.source)
        base = local_folder(loaded.source, config.model.revision)
        save_hardened(loaded.model, tokenizer, folder, base)
        (folder / "README.md").write_text(model_card(config, run, experts), "utf-8")
        tensors = trained.changed_tensors()
        if tensors is None:
            return
        report = verify_only_selected_changed(
            loaded.source,
            folder,
            trained.experts,
            tensors=tensors,
            revision=config.model.revision,
        )
        what = "the routers'" if tensors else ""
        if trained.experts:
            what = "the selected experts'" + (f" and {what}" if tensors else "")
        reporter.line(
            f"checked: {report.num_compared} tensors compared, only {what} differ from the base"
        )
        if not report.num_changed:
            reporter.note(
                "training changed no weight as it is saved, so the hardened model is the base model: its steps are "
                f"smaller than the type of the weights can hold (train.learning_rate = {config.train.learning_rate:g})"
            )


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
) -> ExpertMasks | None:
    """The expert mask that training applies: the global one, or one for each batch; only trained experts."""
    scope = config.train.mask_scope
    if scope == "off":
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
        return ExpertMasks(create_expert_mask(*shape, experts, layers), scope)
    trained = set(experts)
    of_batches = {
        batch_idx: create_expert_mask(*shape, [pair for pair in chosen if pair in trained], layers)
        for batch_idx, chosen in run.read_selection().per_batch.items()
    }
    return ExpertMasks(of_batches, scope)
