"""Two processes on gloo: data parallel and fully sharded training give the gradients of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from architectures import BY_NAME, token_ids
from steermoe.errors import TrainingError
from steermoe.moe.slices import ExpertSlices, attach_expert_slices

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


def work(kind: str, dtype_name: str) -> None:
    """Two steps on a plain loss; asserts fail the test."""
    dtype = getattr(torch, dtype_name)
    dist.init_process_group("gloo")
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


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def work_stepping_during_backward() -> None:
    """Copies would drift apart and are refused, however early; sharded masters step on the mean."""
    early_model, early = build(torch.float32)
    early.step_during_backward(sgd)
    dist.init_process_group("gloo")
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


def run_in_two_processes(work: str, *arguments: str) -> None:
    """Run one of the functions above in both processes; what it asserts is asserted here."""
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
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, work, *arguments],
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
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["ddp", "fully_shard"])
def test_two_processes_train_as_one(kind: str, dtype: str) -> None:
    run_in_two_processes("work", kind, dtype)


def test_copies_of_the_masters_are_not_stepped_during_backward_and_shards_are() -> None:
    run_in_two_processes("work_stepping_during_backward")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    if dist.is_initialized():
        dist.destroy_process_group()
