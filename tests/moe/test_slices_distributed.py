"""Two processes on gloo: data parallel and fully sharded training give the gradients of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from architectures import BY_NAME, enable_checkpointing, token_ids
from steermoe.analysis.selection import create_expert_mask
from steermoe.errors import TrainingError
from steermoe.moe.slices import ExpertSlices, attach_expert_slices
from steermoe.records import Label
from steermoe.training.dataset import MicroBatches, TrainingRow, collate
from steermoe.training.forward_plan import ExpertMasks, ForwardPlan
from steermoe.training.spread import end_group
from steermoe.training.trainables import Experts
from steermoe.training.trainer import ExpertMaskingTrainer, trainable_parameters

EXPERTS = [(0, 1), (0, 4), (0, 7), (1, 2)]
"""Three rows in one layer and one in the other: neither divides evenly between two processes."""

WORLD_SIZE = 2


def build(dtype: torch.dtype) -> tuple[torch.nn.Module, ExpertSlices]:
    model = BY_NAME["gpt_oss"].build().to(dtype)
    return model, attach_expert_slices(model, EXPERTS)


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def batches() -> list[torch.Tensor]:
    """One batch a process; the second is so short that it misses some of the trained experts."""
    return [token_ids(2, 9), token_ids(2, 3, seed=1)]


def expected_steps(dtype: torch.dtype, steps: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Masters after some steps on the mean of the processes' losses, and the folded model's logits."""
    model, slices = build(dtype)
    optimizer = torch.optim.AdamW(slices.parameters(), lr=1e-2)
    for _ in range(steps):
        for ids in batches():
            (loss_of(model, ids) / WORLD_SIZE).backward()
        optimizer.step()
        optimizer.zero_grad()
    masters = {name: tensor.clone() for name, tensor in slices.state_dict().items()}
    slices.fold()
    slices.detach()
    with torch.no_grad():
        return masters, model(token_ids(2, 9)).logits


def shard(model: torch.nn.Module) -> torch.nn.Module:
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def begin_group() -> None:
    """Join the other process, unless earlier work of this one has."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def work(kind: str, dtype_name: str) -> None:
    """Two steps on a plain loss; asserts fail the test."""
    dtype = getattr(torch, dtype_name)
    begin_group()
    rank = dist.get_rank()
    model, slices = build(dtype)
    names = [name for name, _ in slices.named_parameters()]
    wrapped = DistributedDataParallel(model) if kind == "ddp" else shard(model)
    assert all(isinstance(p, DTensor) == (kind == "fully_shard") for p in wrapped.parameters())
    optimizer = torch.optim.AdamW(slices.parameters(), lr=1e-2)
    for _ in range(2):
        loss_of(wrapped, batches()[rank]).backward()
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        assert all(p.grad is not None for p in slices.parameters())
        optimizer.step()
        optimizer.zero_grad()
    if kind == "fully_shard":
        with pytest.raises(TrainingError, match="cannot hold sharded parameters"):
            trainable_parameters(model)
    masters, logits = expected_steps(dtype, 2)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-3
    state = slices.state_dict()
    assert list(state) == names
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, masters[name], rtol=tolerance, atol=tolerance)
    with torch.no_grad(), slices.switched_off():
        base = wrapped(token_ids(2, 9)).logits
    slices.load_state_dict(state)
    slices.fold()
    slices.detach()
    with torch.no_grad():
        folded = wrapped(token_ids(2, 9)).logits
    torch.testing.assert_close(folded, logits, rtol=10 * tolerance, atol=10 * tolerance)
    assert not torch.allclose(base, folded, atol=1e-3)


def row(name: str, objective: str, label: Label, lengths: tuple[int, int]) -> TrainingRow:
    ids = token_ids(1, sum(lengths), seed=len(name))[0].tolist()
    messages = ({"role": "user", "content": name},)
    prompt, completion = tuple(ids[: lengths[0]]), tuple(ids[lengths[0] :])
    return TrainingRow(name, label, 0, objective, messages, name, prompt, completion)


def micro_batches() -> list[list[TrainingRow]]:
    """One micro-batch a process, each with refusals, one of them masked, and replies to keep."""
    first = [
        row("unsafe", "refusal", Label.UNSAFE, (4, 6)),
        row("plain goal", "refusal", Label.SAFE, (5, 3)),
        row("benign reply", "retention", Label.BENIGN, (3, 5)),
    ]
    return [first, [row("other unsafe one", "refusal", Label.UNSAFE, (3, 4)), first[2]]]


def build_trainer(folder: str) -> tuple[torch.nn.Module, ExpertSlices, ExpertMaskingTrainer]:
    """A model whose trained experts have moved away from the base, and its trainer, under a mask."""
    model, slices = build(torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    trainer = ExpertMaskingTrainer(
        model=model,
        args=TrainingArguments(output_dir=folder, use_cpu=True, report_to="none"),
        train_dataset=MicroBatches(micro_batches()[0]),
        plan=ForwardPlan(
            model,
            Experts(slices),
            masks=ExpertMasks(create_expert_mask(2, 8, EXPERTS), "unsafe"),
        ),
    )
    return model.train(), slices, trainer


def work_with_the_trainer(kind: str) -> None:
    """The trainer's loss, masked and checkpointed: gradients are the mean of the processes' own."""
    with tempfile.TemporaryDirectory() as folder:
        model, slices, trainer = build_trainer(folder)  # which starts the process group
        expected_model, expected, plain = build_trainer(folder)
    for rows in micro_batches():
        (plain.compute_loss(expected_model, collate([rows], 0)) / WORLD_SIZE).backward()
    enable_checkpointing(model)
    wrapped = DistributedDataParallel(model) if kind == "ddp" else shard(model)
    rows = micro_batches()[dist.get_rank()]
    trainer.compute_loss(wrapped, collate([rows], 0)).backward()
    masters = dict(slices.named_parameters())
    for name, master in expected.named_parameters():
        gradient = masters[name].grad
        assert isinstance(gradient, DTensor) == (kind == "fully_shard")
        gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        assert master.grad.abs().max() > 1e-4
        torch.testing.assert_close(gradient, master.grad, rtol=1e-4, atol=1e-6)


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def work_stepping_during_backward() -> None:
    """Copies would drift apart and are refused, however early; sharded masters step on the mean."""
    early_model, early = build(torch.float32)
    early.step_during_backward(sgd)
    begin_group()
    ids = batches()[dist.get_rank()]
    with pytest.raises(TrainingError, match="the copies of 2 processes would drift apart"):
        loss_of(DistributedDataParallel(early_model), ids).backward()

    model, slices = build(torch.float32)
    wrapped = DistributedDataParallel(model)
    with pytest.raises(TrainingError, match="the copies of 2 processes would drift") as caught:
        slices.step_during_backward(sgd)
    assert "\n" not in str(caught.value)
    loss_of(wrapped, ids).backward()  # nothing was registered
    assert all(p.grad is not None for p in slices.parameters())

    model, slices = build(torch.float32)
    wrapped = shard(model)
    slices.step_during_backward(sgd)
    loss_of(wrapped, ids).backward()
    plain, expected = build(torch.float32)
    optimizer = sgd(list(expected.parameters()))
    for each in batches():
        (loss_of(plain, each) / WORLD_SIZE).backward()
    optimizer.step()
    masters = expected.state_dict()
    for name, tensor in slices.state_dict().items():
        torch.testing.assert_close(tensor, masters[name], rtol=1e-5, atol=1e-6)


def two_processes(*works: tuple[str, ...]) -> list[str]:
    """Do work of the functions above, one after the other, in both processes; returns what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(WORLD_SIZE),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *map(as_argument, works)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        f"{output}\nended with {process.returncode}\n"
        for process, output in zip(processes, outputs, strict=True)
    ]


def as_argument(work: tuple[str, ...]) -> str:
    return ",".join(work)


def assert_done(outputs: list[str], *work: str) -> None:
    """Both processes did it, and ended well."""
    for output in outputs:
        assert f"did {as_argument(work)}\n" in output, output[-4000:]
        assert "\nended with 0\n" in output, output[-4000:]


MODES = [(kind, dtype) for kind in ("ddp", "fully_shard") for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def together() -> list[str]:
    """What two processes said that did most of the work: starting them takes far longer."""
    return two_processes(
        ("work_stepping_during_backward",),  # which begins before the other process is there
        *(("work", *mode) for mode in MODES),
        ("work_with_the_trainer", "ddp"),
    )


@pytest.mark.parametrize(("kind", "dtype"), MODES)
def test_two_processes_train_as_one(together: list[str], kind: str, dtype: str) -> None:
    assert_done(together, "work", kind, dtype)


def test_copies_of_the_masters_are_not_stepped_during_backward_and_shards_are(
    together: list[str],
) -> None:
    assert_done(together, "work_stepping_during_backward")


def test_the_trainers_loss_gives_two_processes_the_mean_of_their_gradients(
    together: list[str],
) -> None:
    assert_done(together, "work_with_the_trainer", "ddp")


def test_processes_that_begin_and_end_with_the_trainer_shard_alike() -> None:
    work = ("work_with_the_trainer", "fully_shard")
    assert_done(two_processes(work), *work)


def threads_of_gloo() -> list[int]:
    """The threads of this process that do the collectives."""
    tasks = [int(folder.name) for folder in Path("/proc/self/task").iterdir()]
    named = {i: Path(f"/proc/self/task/{i}/comm").read_text().strip() for i in tasks}
    return [i for i, name in named.items() if "gloo" in name]


def work_with_starved_threads() -> None:
    """Gloo's threads get no processor time that anybody else wants, and are late at letting go of tensors."""
    begin_group()
    gather_late()
    end_group()
    assert not threads_of_gloo()


def gather_late() -> None:
    """Collectives of starved threads, of a model that is gone afterwards."""
    model, slices = build(torch.float32)
    wrapped = shard(model)
    loss_of(wrapped, batches()[dist.get_rank()]).backward()
    assert threads_of_gloo()
    for thread in threads_of_gloo():
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    for parameter in slices.parameters():
        assert isinstance(parameter.grad, DTensor)
        parameter.grad.full_tensor()


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="threads are named on Linux alone")
def test_no_thread_of_a_collective_outlives_the_process_group() -> None:
    assert_done(two_processes(("work_with_starved_threads",)), "work_with_starved_threads")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, *arguments = argument.split(",")
        globals()[name](*arguments)
        print(f"did {argument}", flush=True)
    end_group()
