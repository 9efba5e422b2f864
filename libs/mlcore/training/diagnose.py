"""What went wrong in a step, in words a user can act on."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.data.batch import MicroBatch
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.step_statistics import Totals


def too_many_bad_steps(
    engine: Engine,
    forward: Callable[[nn.Module, Any], StepOutput],
    window: Sequence[MicroBatch],
    *,
    totals: Totals,
    step: int,
    samples: Sequence[Sequence[int]],
    folder: Path | None,
) -> UserError:
    """Write which samples and which module; returns what ends the run. The last good checkpoint stays the newest.

    Args:
        engine: What ran the windows.
        forward: The task's training step.
        window: The last one.
        totals: The figures that say how many there were.
        step: The last one's number.
        samples: Dataset indices of each window of the row, oldest first.
        folder: Where the report goes; None writes none.
    """
    place = first_bad_module(engine, forward, window)
    report = {
        "step": step,
        "windows_not_finite_in_a_row": totals.worst_row,
        "windows_not_finite_in_all": totals.skipped,
        "first_bad_place": place,
        "sample_indices_by_window": samples,
        "learning_rates": engine.learning_rates(),
    }
    where = "no file: checkpoints are off"
    if folder is not None:
        path = folder / f"bad_steps_rank{engine.world.rank}.json"
        write_json(path, report)
        where = str(path)
    return UserError(
        f"{totals.worst_row} training steps in a row were not finite, the last at step {step}: {place}. Samples and "
        f"details: {where}. Look at these samples, lower --lr, set --max_grad_norm, or use --precision bf16 or fp32."
    )


def first_bad_module(
    engine: Engine, forward: Callable[[nn.Module, Any], StepOutput], window: Sequence[MicroBatch]
) -> str:
    """Run `window` forward and backward once more and name the first place where a value is not finite.

    Parameters and optimiser are left as they are.

    Returns:
        A sentence naming a parameter, an input, a module's output, the loss or a gradient.
    """
    for name, parameter in engine.model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter '{name}' itself holds values that are not finite"
    for batch in window:
        found = _first_in_forward(engine, forward, batch)
        if found is not None:
            return found
    names = dict(engine.model.named_parameters())
    bad = [n for n, p in names.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    engine.model.zero_grad(set_to_none=True)
    if bad:
        return f"the forward pass is finite; the gradient of '{bad[-1]}' is not ({len(bad)} of {len(names)} gradients)"
    return "this window is finite when it is run again"


def _first_in_forward(engine: Engine, forward: Callable[[nn.Module, Any], StepOutput], batch: MicroBatch) -> str | None:
    found: list[str] = []

    def watch(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not _all_finite(output):
            where = "its input is finite" if _all_finite(inputs) else "its input already was not"
            found.append(f"output of module '{name or 'model'}' ({type(module).__name__}) is not finite; {where}")

    with ExitStack() as hooks, engine.autocast():
        for name, module in engine.model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(watch, name)))
        output = forward(engine.model, batch.data)
    if found:
        return found[0]
    if not bool(torch.isfinite(output.loss_sum)):
        return "every module's output is finite, the loss is not"
    output.loss_sum.backward()  # type: ignore[no-untyped-call]
    return None


def _all_finite(value: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _memory_advice(error: BaseException, *, device: torch.device, micro_batch: int, accumulation: int) -> str:
    """Which knobs to turn after `error`, most harmless first.

    Args:
        error: What torch raised.
        device: Where memory ran out.
        micro_batch: Samples of one micro-batch on one rank.
        accumulation: Micro-batches of a window.
    """
    lines = [f"out of memory on {device}: {str(error).splitlines()[0]}"]
    if micro_batch > 1:
        half = max(1, micro_batch // 2)
        factor = -(-micro_batch // half)
        lines.append(
            f"  --batch_size {half} --gradient_accumulation_steps {accumulation * factor}   "
            "the same gradients in less memory (but for batch norms)"
        )
    lines += [
        "  --gradient_checkpointing   recomputes activations: less memory, about a third more time",
        "  --precision bf16   half the activation memory (Ampere or newer)",
        "  a smaller model, shorter sequences or smaller images",
    ]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        lines.append(
            f"  {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free now: another process may hold some (nvidia-smi)"
        )
    return "\n".join(lines)


@contextmanager
def advice_when_out_of_memory(*, device: torch.device, micro_batch: int, accumulation: int) -> Iterator[None]:
    """Where memory runs out in the block, a `UserError` says which knobs to turn; likewise where a reader is killed."""
    try:
        yield
    except (MemoryError, RuntimeError, ConnectionError, EOFError) as caught:
        error = _death_of_reader(caught) if isinstance(caught, ConnectionError | EOFError) else caught
        if str(error).startswith("DataLoader worker"):  # torch has no class for it; the kernel kills for want of memory
            raise UserError(
                f"a process that reads data has died ({str(error).splitlines()[0].strip()}): most often the machine is "
                "short of memory. Free some, or lower --num_workers or --batch_size; the same command goes on"
            ) from error
        # The CPU allocator has no exception class of its own.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        advice = _memory_advice(error, device=device, micro_batch=micro_batch, accumulation=accumulation)
        raise UserError(advice) from error


def _death_of_reader(error: Exception) -> Exception:
    """What torch says of a process that ended while it handed a batch over: its handler raises as the signal comes."""
    try:
        time.sleep(1)
    except RuntimeError as death:
        return death
    return error


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of a CUDA device so far, or on a CPU of this process: what was resident at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):  # of Linux; unlike getrusage's, not that of the process that started it
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    rss: int = psutil.Process().memory_info().rss
    return rss
