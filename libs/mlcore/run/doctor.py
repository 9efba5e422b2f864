"""The system check behind `make doctor` and every app's `--test`: what is there, what is missing, what to do about it.

Takes a few seconds, also without a network: every check runs in a thread of its own, and what depends on a network is
given up after `DEADLINE` seconds.
"""

import importlib.util
import os
import platform
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from mlcore.base.env import load_env, wandb_key_source
from mlcore.base.errors import UserError
from mlcore.base.files import format_bytes, free_bytes
from mlcore.base.secrets import mask_text
from mlcore.remote.s3 import check_bucket, to_address
from mlcore.run.folder import try_folder
from mlcore.trackers.wandb import check_wandb

__all__ = ["DEADLINE", "Check", "CheckFunction", "check_system", "exit_code", "format_checks"]

DEADLINE = 4.0
"""Seconds for all network checks together (a dead name server takes no timeout)."""

VARIABLES = (
    "WANDB_API_KEY",
    "WANDB_PROJECT",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
    "S3_BUCKET_NAME",
    "CUDA_VISIBLE_DEVICES",
)
"""What `.env` may set."""

_GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: "fail" means that training cannot work, "warn" that something optional is missing or tight.
        detail: What was found.
        advice: What to do about it; empty if all is well.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


CheckFunction = Callable[[], list[Check]]


def check_system(output_folder: Path, *, upload_to: str | None = None) -> list[Check]:
    """Look at everything training needs.

    Args:
        output_folder: Where runs will be written.
        upload_to: Bucket, or s3://bucket/prefix, to which they will be copied; None for none.

    Returns:
        All findings, in a fixed order.
    """
    local: list[CheckFunction] = [
        _check_env_file,
        _check_python,
        _check_torch,
        _check_processor_and_memory,
        lambda: _check_output(output_folder),
        _check_shared_memory,
        _check_tensorboard,
    ]
    _check_env_file()  # before all others, which read the variables it brings
    network: list[tuple[str, CheckFunction]] = [
        ("W&B", _check_wandb),
        ("S3", lambda: _check_s3(upload_to)),
        ("Model hub", _check_hub),
    ]
    results: dict[int, list[Check]] = {}
    tasks = [*local, *(check for _, check in network)]
    threads = [threading.Thread(target=_run, args=(i, task, results), daemon=True) for i, task in enumerate(tasks)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads[: len(local)]:
        thread.join()
    for index, (name, _) in enumerate(network, start=len(local)):
        threads[index].join(max(0.0, started + DEADLINE - time.monotonic()))
        late = Check(name, "warn", f"no answer within {DEADLINE:g} s", "Check the network; training works without it.")
        results.setdefault(index, [late])
    return [check for index in range(len(tasks)) for check in results[index]]


def format_checks(checks: Sequence[Check]) -> str:
    """A table of all findings, then one line of advice for each problem."""
    width = max((len(check.name) for check in checks), default=0)
    lines = [f"{check.status:<4}  {check.name:<{width}}  {mask_text(check.detail)}" for check in checks]
    problems = [check for check in checks if check.advice]
    if problems:
        lines += ["", "What to do:"]
        lines += [f"  {check.status}  {check.name}: {mask_text(check.advice)}" for check in problems]
    return "\n".join(lines)


def exit_code(checks: Sequence[Check]) -> int:
    """1 if any check failed, else 0; warnings do not count."""
    return int(any(check.status == "fail" for check in checks))


def _run(index: int, task: CheckFunction, results: dict[int, list[Check]]) -> None:
    try:
        results[index] = task()
    except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, not the end of the check-up
        name = getattr(task, "__name__", "check").strip("_").removeprefix("check_")
        results[index] = [Check(name, "fail", f"{type(error).__name__}: {error}", "Mend this and run the check again.")]


def _check_env_file() -> list[Check]:
    try:
        files = load_env()
    except UserError as error:
        return [Check(".env", "fail", str(error), "Correct the line.")]
    names = [name for name in VARIABLES if os.environ.get(name)]
    source = ", ".join(str(path) for path in files) or "no file"
    return [Check(".env", "ok", f"{source}; set: {', '.join(names) or 'none'} (all are optional)")]


def _check_python() -> list[Check]:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    if sys.version_info < (3, 11):  # noqa: UP036 - people run this check because something is too old
        return [Check("Python", "fail", found, "Install Python 3.11 or newer and make a new virtual environment.")]
    return [Check("Python", "ok", found)]


def _check_torch() -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return [Check("PyTorch", "fail", "not installed", "pip install -r requirements/base.txt")]
    import torch

    version = str(torch.__version__)
    build = f"{version}, CUDA build {torch.version.cuda}" if torch.version.cuda else f"{version}, no CUDA build"
    checks = [Check("PyTorch", "ok", build)]
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < (2, 11):
        checks = [
            Check("PyTorch", "fail", build, "Version 2.11 or newer is needed: pip install -r requirements/base.txt")
        ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            checks.append(
                Check(f"Device cuda:{index}", "ok", f"{name}, {format_bytes(free)} of {format_bytes(total)} free")
            )
    elif torch.backends.mps.is_available():
        from mlcore.base.distributed import NO_MPS  # late, as torch itself: this check tells where it is missing

        checks.append(Check("Devices", "ok", f"CPU; the Apple GPU is not used: {NO_MPS}"))
    elif Path("/dev/nvidia0").exists():
        advice = "Update the NVIDIA driver for this CUDA build, and look at CUDA_VISIBLE_DEVICES."
        checks.append(
            Check("Devices", "warn", "an NVIDIA card that PyTorch cannot use; training runs on the CPU", advice)
        )
    else:
        checks.append(Check("Devices", "ok", "CPU only"))
    return checks


def _check_processor_and_memory() -> list[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    found = f"{format_bytes(memory.available)} of {format_bytes(memory.total)} free"
    checks = [Check("CPU", "ok", f"{cores} cores")]
    if memory.available < 2 * _GIB:
        return [
            *checks,
            Check("Memory", "warn", found, "Close other programs, or lower the batch size and num_workers."),
        ]
    return [*checks, Check("Memory", "ok", found)]


def _check_output(folder: Path) -> list[Check]:
    try:
        try_folder(folder)
    except UserError as error:
        return [Check("Output folder", "fail", str(error), "Choose another one with output_dir=PATH.")]
    free = free_bytes(folder)
    found = f"{folder.absolute()}: writable, {format_bytes(free)} free"
    if free < 5 * _GIB:
        advice = "Free some space, or keep fewer checkpoints; a large model's checkpoint takes gigabytes."
        return [Check("Output folder", "fail" if free < _GIB // 10 else "warn", found, advice)]
    return [Check("Output folder", "ok", found)]


def _check_shared_memory() -> list[Check]:
    shared = Path("/dev/shm")  # noqa: S108 - its size is read, nothing is written
    if not shared.is_dir():
        return []
    free = free_bytes(shared)
    if free < _GIB:
        advice = "Data loading workers need it: start the container with --shm-size=8g, or set num_workers=0."
        return [Check("Shared memory", "warn", f"{format_bytes(free)} free in /dev/shm", advice)]
    return [Check("Shared memory", "ok", f"{format_bytes(free)} free in /dev/shm")]


def _check_tensorboard() -> list[Check]:
    if importlib.util.find_spec("tensorboard") is None:
        return [Check("TensorBoard", "warn", "not installed", "pip install tensorboard; runs are logged without it.")]
    return [Check("TensorBoard", "ok", "installed")]


def _check_wandb() -> list[Check]:
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled") and importlib.util.find_spec("wandb") is not None:
        return [Check("W&B", "ok", f"installed, {mode} (WANDB_MODE)")]
    try:
        check_wandb()
    except UserError as error:
        return [Check("W&B", "warn", str(error), "Runs without --use_wandb need nothing of it.")]
    return [Check("W&B", "ok", f"installed, the server takes the key from {wandb_key_source()}")]


def _check_s3(upload_to: str | None) -> list[Check]:
    if upload_to is None:
        return [Check("S3", "ok", "not used (neither S3_BUCKET_NAME nor --upload_to is set)")]
    if importlib.util.find_spec("boto3") is None:
        return [Check("S3", "warn", "boto3 is not installed", "pip install -r requirements/base.txt")]
    try:
        check_bucket(upload_to)
    except UserError as error:
        return [Check("S3", "warn", str(error), "Runs stay on the local disk alone until this is mended.")]
    return [Check("S3", "ok", f"takes files, runs are copied to {to_address(upload_to)}")]


def _check_hub() -> list[Check]:
    installed = "huggingface_hub installed" if importlib.util.find_spec("huggingface_hub") else "no huggingface_hub"
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "TRUE", "yes"):
        return [Check("Model hub", "ok", f"{installed}, HF_HUB_OFFLINE is set: only models already downloaded")]
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    advice = "Pre-trained weights must come from local files; nothing else needs the hub."
    if not address.startswith(("http://", "https://")):
        return [Check("Model hub", "warn", f"HF_ENDPOINT={address} is no address", "Expected https://host.")]
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the scheme has been checked
    try:
        with urllib.request.urlopen(request, timeout=3):  # noqa: S310 - as above
            pass
    except urllib.error.HTTPError:
        pass  # an answer all the same
    except OSError as error:
        return [Check("Model hub", "warn", f"{installed}, {address} cannot be reached ({error})", advice)]
    return [Check("Model hub", "ok", f"{installed}, {address} answers")]
