"""What evaluating with an ensemble needs of memory: one member, four, and four held one at a time.

python -m benchmarks.doc_memory            about three minutes on two cores
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import ROOT, Goal, Options, Report, alternate, median_text, ratio, ratio_text, run_alone
from benchmarks.doc_models import IMAGE_SIZE, Random, write_member, write_pages
from quartet.apps.doc_ensemble.ensemble.inference import predict_pages
from quartet.apps.doc_ensemble.ensemble.reading import document_pages
from quartet.apps.doc_ensemble.ensemble.views import ViewKind, with_identity

_MEMBERS, _BATCH = 4, 8
_AT_MOST = 1.25
_SIDES = {"1 member": (1, False), "4 members": (4, False), "4 members, low_memory": (4, True)}


@dataclass(frozen=True)
class _Setup:
    """The ensemble and its pages."""

    model: str
    pages: int


def measure(options: Options) -> Report:
    """Peak memory of each way, in processes of their own, in turns."""
    setup = _Setup("resnet18", 8) if options.quick else _Setup("resnet50", 32)
    rounds = 1 if options.quick else 3
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_pages(Path(folder), "384", setup.pages)
        members = [write_member(Path(folder), setup.model, number) for number in range(_MEMBERS)]
        size = members[0].path.stat().st_size
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            sides = {name: _side(Path(folder), setup, device, *way) for name, way in _SIDES.items()}
            found[device] = alternate(sides, rounds=rounds)
            print(f"{device}: {found[device]}", flush=True)
    rows, goals = [], []
    for device, peaks in found.items():
        one = peaks["1 member"]
        rows += [
            [device, name, median_text(values, digits=0), ratio_text(values, one)] for name, values in peaks.items()
        ]
        low = ratio(peaks["4 members, low_memory"], one)[0]
        text = f"{device}: four members with low_memory need at most {_AT_MOST} of what one needs"
        goals.append(Goal(text, f"{low:.2f}", low <= _AT_MOST))
    return Report(
        title="Memory of an ensemble",
        method=(
            f"Members of {setup.model} at {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}, {size / 2**20:.0f} MiB of weights each, "
            f"predict {setup.pages} pages and their flips in batches of {_BATCH}; every measurement is a process "
            "of its own. cpu: peak resident memory above that before evaluating, with everything imported and a small network "
            "run; cuda: peak of what torch allocates there. Median (smallest..largest) in MiB; ratios are of the same "
            "round."
        ),
        header=["memory", "ensemble", "peak, MiB", "of one member's"],
        rows=rows,
        goals=goals,
        notes=[
            "With `low_memory` prepared pages wait in a file, 48 KiB for each of these; what is mapped of it counts as "
            "resident, though the system takes it back when memory is short.",
        ],
        raw=found,
    )


def _side(folder: Path, setup: _Setup, device: str, members: int, low_memory: bool) -> Callable[[], float]:
    job = {"folder": str(folder), "model": setup.model, "pages": setup.pages, "device": device, "members": members}
    command = [sys.executable, "-m", "benchmarks.doc_memory", "--job", json.dumps({**job, "low_memory": low_memory})]

    def run() -> float:
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return float(done.stdout.splitlines()[-1])

    return run


# ----------------------------------------------------------------------------------------------- inside such a process


def _peak(*, folder: str, model: str, pages: int, device: str, members: int, low_memory: bool) -> float:
    """MiB."""
    place = torch.device(device)
    files = [Path(folder) / f"member{number}.pt" for number in range(members)]
    asked = [Random(name=f"member{number}", model_name=model, path=path) for number, path in enumerate(files)]
    read = document_pages(write_pages(Path(folder), "384", pages), asked, max_pixels=10**8)
    views = with_identity([ViewKind(type="horizontal_flip")])
    with torch.inference_mode():  # what convolutions need once
        torch.nn.Conv2d(1, 8, 3).to(place)(torch.zeros(1, 1, 32, 32, device=place))
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    predict_pages(asked, read, views=views, device=place, batch_size=_BATCH, low_memory=low_memory)
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        print(_peak(**json.loads(sys.argv[2])))
    else:
        run_alone(measure)
