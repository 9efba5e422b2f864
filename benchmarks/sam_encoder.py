"""SAM-Med3D's encoder and its click step beside the released code, with identical weights.

python -m benchmarks.sam_encoder            about twenty minutes on two cores

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
from mlcore.training.engine import Precision, autocast, autocast_dtype
from quartet.apps.sam_med3d_ich.losses import dice_cross_entropy
from quartet.apps.sam_med3d_ich.model.clicks import next_click
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.sam import PRESETS

_GFLOP = 105.0  # of a forward pass at 128^3, batch 1
_SIDE, _CLICKS = 128, 11
_BATCHES = (1, 2, 4)
_JOBS = {"forward": "forward", "step": "forward + backward", "clicks": f"training step, {_CLICKS} clicks"}
_GOALS = {  # times the released code as it comes, in float32
    "fp32": {"forward": 13.0, "step": 8.5, "clicks": 6.0},
    "bf16": {"forward": 20.0, "step": 13.0, "clicks": 9.0},
}

_Figures = dict[str, float]
_Key = tuple[str, str, str, int]  # side, precision, job, batch


def measure(options: Options) -> Report:
    """Encoder forward, forward and backward, memory, a training step along clicks, and a sweep over batch sizes."""
    title = "SAM-Med3D encoder"
    method = (
        "vit_b_ori at 128^3, the same random weights on both sides; each figure is the median of a few calls in a "
        "process of its own, the sides in turns. bf16 is autocast, on both sides, where the processor multiplies it. "
        "Memory: peak resident memory of that process above its peak with the model loaded. Click step: one volume, "
        f"{_CLICKS} rounds, DiceCE, AdamW not included; the released protocol encodes once, decodes each round, and "
        "backpropagates the sum. Ratios are of the same round."
    )
    if peer("medim") is None:
        return Report(title=title, method=method, skipped="medim is not installed; make bench installs it")
    rounds = 1 if options.quick else 5
    has_bf16 = autocast_dtype("auto", torch.device("cpu")) is torch.bfloat16
    precisions = ("fp32", "bf16") if has_bf16 else ("fp32",)
    sides = [(side, precision) for precision in precisions for side in ("medim", "ours")]
    found: dict[_Key, list[_Figures]] = {}
    gemm: list[float] = []
    for number in range(rounds):
        gemm.append(_gemm_rate())
        for job in ("forward", "step") if options.quick else _JOBS:
            for side, precision in sides[:: 1 if number % 2 == 0 else -1]:
                found.setdefault((side, precision, job, 1), []).append(_alone(side, precision, job, 1))
    for batch in _BATCHES[1:] if not options.quick else ():
        for job in ("forward", "step"):
            for precision in precisions:
                found["ours", precision, job, batch] = [_alone("ours", precision, job, batch)]
    return _report(title, method, found, gemm)


def _report(title: str, method: str, found: dict[_Key, list[_Figures]], gemm: list[float]) -> Report:
    def column(side: str, precision: str, job: str, key: str = "seconds") -> list[float]:
        return [values[key] for values in found[side, precision, job, 1]]

    rows, goals = [], []
    for precision, wanted in _GOALS.items():
        for job in [name for name in _JOBS if ("ours", precision, name, 1) in found]:
            ours, theirs, released = (
                column(*side, job) for side in (("ours", precision), ("medim", precision), ("medim", "fp32"))
            )
            peaks = [statistics.median(column(side, precision, job, "peak_mib")) for side in ("medim", "ours")]
            times = [median_text(theirs, digits=2), median_text(ours, digits=2)]
            faster = [ratio_text(theirs, ours), ratio_text(released, ours)]
            rows.append([_JOBS[job], precision, "1", *times, *faster, *(f"{peak:.0f}" for peak in peaks)])
            times_released = ratio(released, ours)[0]
            said = f"{_JOBS[job]} in {precision}: at least {wanted[job]:g} times the released code as it comes"
            goals.append(Goal(said, f"{times_released:.1f}", times_released >= wanted[job]))
            if precision == "fp32" and job != "clicks":
                share = peaks[1] / peaks[0]
                goals.append(Goal(f"{_JOBS[job]}: peak memory at most 0.35", f"{share:.2f}", share <= 0.35))
    for (_, precision, job, batch), values in found.items():
        if batch > 1:
            seconds, peak = values[0]["seconds"], values[0]["peak_mib"]
            each = f"{seconds:.2f} ({seconds / batch:.2f} each)"
            rows.append([_JOBS[job], precision, str(batch), "", each, "", "", "", f"{peak:.0f}"])
    best = min(column("ours", "fp32", "forward"))
    differences = {
        precision: f"{found['medim', precision, 'forward', 1][0]['difference']:.1e} in {precision}"
        for precision in _GOALS
        if ("medim", precision, "forward", 1) in found
    }
    return Report(
        title=title,
        method=method,
        header=["what", "in", "batch", "medim, s", "ours, s", "faster", "than medim fp32", "medim, MiB", "ours, MiB"],
        rows=rows,
        goals=goals,
        notes=[
            f"Matrix products (2048^3, fp32, {torch.get_num_threads()} threads) ran at {statistics.median(gemm):.0f} "
            f"GFLOP/s in this run ({min(gemm):.0f}..{max(gemm):.0f}). The quickest forward pass in fp32, {_GFLOP:.0f} "
            f"GFLOP in {best:.2f} s, is {_GFLOP / best / max(gemm):.0%} of the best of these.",
            f"Relative difference of our embedding from the released one in fp32: {', '.join(differences.values())}.",
            *([] if "bf16" in differences else ["This processor does not multiply bf16, which is left out."]),
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


def _alone(side: str, precision: str, job: str, batch: int) -> _Figures:
    command = [sys.executable, "-m", "benchmarks.sam_encoder", "--side", side, precision, job, str(batch)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    print(f"{side} {precision} {job} {batch}: {done.stdout.strip()}", flush=True)
    values: _Figures = json.loads(done.stdout.splitlines()[-1])
    return values


# ----------------------------------------------------------------------------------------------- inside such a process


def _one_side(side: str, precision: Precision, job: str, batch: int) -> _Figures:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    ours = IchModel(PRESETS["vit_b_ori"], prompted=True)
    for name, parameter in ours.named_parameters():
        if "rel_pos" in name or name.endswith("qkv.bias"):
            nn.init.normal_(parameter, std=0.3)
    image = torch.randn(batch, 1, _SIDE, _SIDE, _SIDE)
    target = (F.avg_pool3d(torch.randn_like(image), 9, stride=1, padding=4) > 0.05).to(torch.uint8)
    result: _Figures = {}
    model: Any = ours
    if side == "medim":
        from medim.models.sam_med3d import build_sam3D_vit_b_ori

        model = build_sam3D_vit_b_ori()
        model.load_state_dict(ours.sam.state_dict())
    encoder = model.image_encoder if side == "medim" else model.sam.image_encoder

    def run(function: Callable[[], Tensor]) -> Tensor:
        with autocast(precision, torch.device("cpu")):
            return function()

    calls: dict[str, Callable[[], object]] = {
        "forward": torch.inference_mode()(lambda: run(lambda: encoder(image))),
        "step": lambda: _backward(encoder, run(lambda: encoder(image).float().square().mean())),
        "clicks": lambda: _backward(
            model, run(lambda: _click_loss(model, image, target, released=side == "medim")).float()
        ),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls[job]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    times = [_seconds(calls[job]) for _ in range(1 if side == "medim" else 5)]
    if side == "medim" and job == "forward":
        with torch.inference_mode():
            there = encoder(image)
            here = run(lambda: ours.encode(image)).float()
        result["difference"] = float((here - there).norm() / there.norm())
    return result | {"seconds": statistics.median(times), "peak_mib": peak / 1024}


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
        print(json.dumps(_one_side(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))))  # type: ignore[arg-type]
    else:
        run_alone(measure)
