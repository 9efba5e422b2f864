"""Peak memory as planned from two small micro-batches, beside what training then takes.

python -m benchmarks.memory_planner            about ten minutes on two cores
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Goal, Options, Report, run_alone

_AT_MOST = 0.10
_SETTINGS = {
    "perceiver": {
        "batch 64": "--batch_size 64",
        "batch 256, with averages": "--batch_size 256 --ema_decay 0.99",
        "base, batch 16 x 2": "model.model_size=base --batch_size 16 --gradient_accumulation_steps 2",
    },
    "multimodal_ads": {
        "batch 64": "--batch_size 64",
        "batch 256": "--batch_size 256",
        "ResNet-18, 224 x 224, batch 32": "vision_encoder.model=resnet18 vision_encoder.image_size=[224,224] "
        "--batch_size 32",
    },
    "doc_ensemble": {
        "batch 32": "",
        "batch 128": "--batch_size 128",
        "ResNet-50, 224 x 224, batch 16": "--batch_size 16 model.model_name=resnet50 model.arguments={} "
        "model.image_size=[224,224]",
    },
    "sam_med3d_ich": {
        "batch 2": "",
        "batch 6": "--batch_size 6",
        "batch 4 x 2, with averages": "--batch_size 4 --gradient_accumulation_steps 2 --ema_decay 0.99",
    },
}
"""Flags beside `--demo`."""
_HOW = "--num_threads 2 --num_workers 0 --device cpu --max_steps 6 --eval_every 100 --save_every_steps 2"
_DATA = {
    "perceiver": "--num_samples 640",
    "multimodal_ads": "data.num_train=256 data.num_val=32 data.num_test=8",
    "doc_ensemble": "data.num_train=136 data.num_val=34 data.num_test=17",
    "sam_med3d_ich": "data.num_train=12 data.num_val=2",
}
"""Less of the demo's data, which is there in a moment."""


def measure(options: Options) -> Report:
    """Plan and train each setting, in processes of their own."""
    rows, raw, worst = [], list[dict[str, Any]](), 0.0
    for app, settings in _SETTINGS.items():
        for name, flags in list(settings.items())[: 1 if options.quick else None]:
            planned, measured = (_job(app, flags, what) for what in ("plan", "train"))
            off, base = planned["peak"] / measured["peak"] - 1, planned["base"]
            above = (planned["peak"] - base) / (measured["peak"] - base) - 1
            worst = max(worst, abs(off))
            raw.append({"app": app, "setting": name, "planned": planned, "measured": measured})
            rows.append(
                [app, name, _mib(planned["peak"]), _mib(measured["peak"]), f"{off:+.1%}", _mib(base), f"{above:+.1%}"]
            )
            print(rows[-1], planned["parts"], flush=True)
    return Report(
        title="Memory planned",
        method=(
            "Each app's demo, other settings as named, on the CPU with two threads, no workers. Planned: by a process "
            "that runs windows of a few samples, as `--dry_run` does. Measured: the most that was resident "
            "(VmHWM) in a process of its own that trains six steps with checkpoints and an evaluation at the end, "
            "until training ends. Both are of the whole process; the last column leaves out what the process that "
            "plans holds before it plans, with everything imported, the data opened and the network built. MiB."
        ),
        header=["app", "setting", "planned", "measured", "difference", "before", "difference above that"],
        rows=rows,
        goals=[Goal("planned within 10 % of what is measured", f"{worst:.1%} at most", worst <= _AT_MOST)],
        raw={"cases": raw},
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def _job(app: str, flags: str, what: str) -> dict[str, Any]:
    how = f"-m benchmarks.memory_planner --job {what} {app} --demo {_DATA[app]} {flags}"
    command = [sys.executable, *how.split()]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ----------------------------------------------------------------------------------------------- inside such a process


def _inside(what: str, app_name: str, flags: list[str], folder: Path) -> dict[str, Any]:
    import psutil

    from mlcore.base.distributed import World
    from mlcore.cli.apps import load_app
    from mlcore.cli.parse import parse
    from mlcore.run.build import build_trainer, configure_torch
    from mlcore.training.diagnose import peak_memory_bytes
    from mlcore.training.memory import plan_memory

    app, world = load_app(app_name), World()
    config = parse(app, [*flags, *_HOW.split()]).config
    configure_torch(config)
    trainer = build_trainer(config, app.build(config, world), world=world, folder=folder)
    trainer.check_monitor()  # as every start does; it brings in what figures are computed with
    base = psutil.Process().memory_info().rss
    if what == "train":
        trainer.fit()
        return {"base": base, "peak": peak_memory_bytes(world.device)}
    plan = plan_memory(trainer)
    parts = plan.parts(config.train.batch_size, accumulation=config.train.gradient_accumulation_steps)
    return {"base": base, "peak": sum(parts.values()), "parts": {name: size >> 20 for name, size in parts.items()}}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(_inside(sys.argv[2], sys.argv[3], sys.argv[4:], Path(scratch) / "checkpoints")))
    else:
        run_alone(measure)
