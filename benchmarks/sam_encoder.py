"""SAM-Med3D's encoder and its click step beside the released code, with identical weights.

python -m benchmarks.sam_encoder            about six minutes on two cores

The released code is that of `medim` on PyPI. Each measurement is a process of its own: it warms up, measures a few
calls, and reports its peak memory.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import ROOT, Goal, Options, Report, median_text, peer, ratio, ratio_text, run_alone
from quartet.apps.sam_med3d_ich.losses import dice_cross_entropy
from quartet.apps.sam_med3d_ich.model.clicks import next_click
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.sam import PRESETS

_GFLOP = 105.0  # of a forward pass at 128^3, batch 1
_SIDE, _CLICKS = 128, 11
_BATCHES = (1, 2, 4)


def measure(options: Options) -> Report:
    """Encoder forward, forward and backward, memory, a training step along clicks, and a sweep over batch sizes."""
    title = "SAM-Med3D encoder"
    method = (
        "vit_b_ori at 128^3, fp32, the same random weights on both sides; each figure is the median of a few calls in "
        "a process of its own, the sides in turns. Memory: peak resident memory of that process above its peak with "
        f"the model loaded. Click step: one volume, {_CLICKS} rounds, DiceCE, AdamW not included; the released "
        "protocol encodes once, decodes each round, and backpropagates the sum."
    )
    if peer("medim") is None:
        return Report(title=title, method=method, skipped="medim is not installed; make bench installs it")
    rounds = 1 if options.quick else 3
    jobs = [("forward", 1), ("step", 1)] + ([] if options.quick else [("clicks", 1)])
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    gemm: list[float] = []
    for number in range(rounds):
        gemm.append(_gemm_rate())
        for job, batch in jobs:
            for side in ("medim", "ours")[:: 1 if number % 2 == 0 else -1]:
                found.setdefault((side, job, batch), []).append(_alone(side, job, batch))
    for batch in _BATCHES[1:] if not options.quick else ():
        for job in ("forward", "step"):
            found["ours", job, batch] = [_alone("ours", job, batch)]
    return _report(title, method, found, gemm)


def _report(
    title: str, method: str, found: dict[tuple[str, str, int], list[dict[str, float]]], gemm: list[float]
) -> Report:
    def column(side: str, job: str, key: str, batch: int = 1) -> list[float]:
        return [values[key] for values in found[side, job, batch]]

    names = {"forward": "forward", "step": "forward + backward", "clicks": f"training step, {_CLICKS} clicks"}
    rows, goals = [], []
    wanted = {"forward": 15.0, "step": 10.0}
    for job in [name for name in names if ("ours", name, 1) in found]:
        theirs, ours = column("medim", job, "seconds"), column("ours", job, "seconds")
        memory = ratio(column("ours", job, "peak_mib"), column("medim", job, "peak_mib"))[0]
        cells = [median_text(theirs, digits=2), median_text(ours, digits=2), f"{ratio_text(theirs, ours)}"]
        peaks = [f"{statistics.median(column(side, job, 'peak_mib')):.0f}" for side in ("medim", "ours")]
        rows.append([names[job], "1", *cells, *peaks, f"{memory:.2f}"])
        if job in wanted:
            faster = ratio(theirs, ours)[0]
            goals.append(Goal(f"{names[job]} at least {wanted[job]:.0f}x", f"{faster:.1f}x", faster >= wanted[job]))
            goals.append(Goal(f"{names[job]}: peak memory at most 0.35x", f"{memory:.2f}x", memory <= 0.35))
    for (_, job, batch), values in found.items():
        if batch > 1:
            seconds, peak = values[0]["seconds"], values[0]["peak_mib"]
            each = f"{seconds:.2f} ({seconds / batch:.2f} each)"
            rows.append([names[job], str(batch), "", each, "", "", f"{peak:.0f}", ""])
    rate = statistics.median(gemm)
    best = min(column("ours", "forward", "seconds"))
    share = _GFLOP / best / max(gemm)
    return Report(
        title=title,
        method=method,
        header=["what", "batch", "medim, s", "ours, s", "faster", "medim, MiB", "ours, MiB", "memory"],
        rows=rows,
        goals=goals,
        notes=[
            f"Matrix products (2048^3, fp32, {torch.get_num_threads()} threads) ran at {rate:.0f} GFLOP/s in this run "
            f"({min(gemm):.0f}..{max(gemm):.0f}). The quickest forward pass, {_GFLOP:.0f} GFLOP in {best:.2f} s, is "
            f"{share:.0%} of the best of these: with fp32 weights there is little left to gain but in the products.",
            f"Relative difference of the two embeddings: {found['medim', 'forward', 1][0]['difference']:.1e}.",
        ],
        raw={"/".join(map(str, key)): values for key, values in found.items()} | {"gemm": gemm},
    )


def _gemm_rate() -> float:
    """GFLOP/s of square matrix products, the best of a few."""
    a, b = torch.randn(2, 2048, 2048).unbind()
    a @ b
    return max(2 * 2048**3 / _seconds(lambda: a @ b) / 1e9 for _ in range(8))


def _seconds(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _alone(side: str, job: str, batch: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.sam_encoder", "--side", side, job, str(batch)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    print(f"{side} {job} {batch}: {done.stdout.strip()}", flush=True)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


# ----------------------------------------------------------------------------------------------- inside such a process


def _one_side(side: str, job: str, batch: int) -> dict[str, float]:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    ours = IchModel(PRESETS["vit_b_ori"], prompted=True)
    for name, parameter in ours.named_parameters():
        if "rel_pos" in name or name.endswith("qkv.bias"):
            nn.init.normal_(parameter, std=0.3)
    image = torch.randn(batch, 1, _SIDE, _SIDE, _SIDE)
    target = (F.avg_pool3d(torch.randn_like(image), 9, stride=1, padding=4) > 0.05).to(torch.uint8)
    result: dict[str, float] = {}
    model: Any = ours
    if side == "medim":
        from medim.models.sam_med3d import build_sam3D_vit_b_ori

        model = build_sam3D_vit_b_ori()
        model.load_state_dict(ours.sam.state_dict())
    encoder = model.image_encoder if side == "medim" else model.sam.image_encoder
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: _forward(encoder, image),
        "step": lambda: _backward(encoder, encoder(image).square().mean()),
        "clicks": lambda: _backward(model, _click_loss(model, image, target, released=side == "medim")),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls[job]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    times = [_seconds(calls[job]) for _ in range(2 if side == "medim" else 5)]
    if side == "medim" and job == "forward":
        with torch.inference_mode():
            here, there = ours.encode(image), encoder(image)
        result["difference"] = float((here - there).norm() / there.norm())
    return result | {"seconds": statistics.median(times), "peak_mib": peak / 1024}


def _forward(encoder: nn.Module, image: Tensor) -> None:
    with torch.inference_mode():
        encoder(image)


def _backward(model: nn.Module, loss: Tensor) -> None:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]


def _click_loss(model: Any, image: Tensor, target: Tensor, *, released: bool) -> Tensor:
    def loss(logits: Tensor) -> Tensor:
        return dice_cross_entropy(logits, target, squared=True).mean()

    if not released:
        masks = model(image, target=target, draws=torch.rand(len(image), _CLICKS)).masks
        return torch.stack([loss(logits) for logits in masks.split(1, dim=1)]).mean()
    return _released_click_loss(model, image, target, loss)


def _released_click_loss(model: Any, image: Tensor, target: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The released protocol on the released model: gradients also flow from round to round through the masks."""
    embedding = model.image_encoder(image)
    low = image.new_zeros(len(image), 1, *(_SIDE // 4,) * 3)
    shown = torch.zeros_like(image)
    positions, labels = image.new_zeros(len(image), 0, 3), torch.zeros(len(image), 0, dtype=torch.long)
    losses_of_rounds = []
    for index in range(_CLICKS):
        position, label = next_click(shown.detach(), target, draw=torch.rand(len(image)))
        positions, labels = torch.cat([positions, position], dim=1), torch.cat([labels, label], dim=1)
        points = None if index in (_CLICKS // 2, _CLICKS - 1) else (positions, labels)
        sparse, dense = model.prompt_encoder(points=points, boxes=None, masks=low)
        low, _ = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        shown = F.interpolate(low, size=image.shape[2:], mode="trilinear", align_corners=False)
        losses_of_rounds.append(loss(shown))
    return torch.stack(losses_of_rounds).mean()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(_one_side(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        run_alone(measure)
