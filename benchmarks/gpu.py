"""Everything that is measured on a GPU, in less than nine minutes: one JSON file and the tables of docs/BENCHMARKS.md.

    make bench-gpu                                       on the first GPU; writes into the document
    python -m benchmarks.gpu --device cpu --quick        small networks, anywhere; writes no document
    python -m benchmarks.gpu --only steps peers          some parts

Parts run one after the other, the most important ones first. What the time or the machine does not allow is left out
and named with its reason.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch

from benchmarks import gpu_around, gpu_parts
from benchmarks.common import Report, environment
from benchmarks.gpu_steps import Session
from benchmarks.run import DOCUMENT, ROOT, with_section

# The most important ones first.
PARTS: dict[str, Callable[[Session], Report]] = {
    "steps": gpu_parts.steps,
    "released": gpu_parts.released,
    "peers": gpu_parts.peers,
    "waits": gpu_around.waits,
    "files": gpu_around.files,
    "saves": gpu_around.saves,
    "curves": gpu_around.curves,
    "memory": gpu_parts.memory,
}


def main() -> int:
    """Measure, print, and write; 0 even where parts are missing, as their reasons are in the output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cuda, cuda:1 or cpu")
    parser.add_argument("--quick", action="store_true", help="small networks, few steps; the figures mean little")
    parser.add_argument("--minutes", type=float, default=8.5, help="when to stop (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), help="some parts")
    parser.add_argument("--json", type=Path, help="where the figures go (default: outputs/benchmarks/gpu-<time>.json)")
    arguments = parser.parse_args()
    available = torch.cuda.is_available()
    name = ("cuda" if available else "cpu") if arguments.device == "auto" else arguments.device
    if name.startswith("cuda") and not available:
        parser.error("there is no CUDA device; --device cpu --quick shows that the benchmark works")
    session = Session(torch.device(name), arguments.quick, time.monotonic() + 60 * arguments.minutes)
    machine = environment() | {"device": torch.cuda.get_device_name(session.device) if "cuda" in name else "cpu"}
    reports = {}
    for part in arguments.only or PARTS:
        print(f"=== {part}", flush=True)
        with session.cell(part) as timely:
            if timely:
                reports[part] = PARTS[part](session)
                print(reports[part].markdown(), flush=True)
    text = _document(reports, machine, session.left_out)
    path = arguments.json or ROOT / "outputs" / "benchmarks" / f"gpu-{datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: asdict(report) for name, report in reports.items()}
    path.write_text(
        json.dumps({"machine": machine, "left_out": session.left_out, "reports": values, "markdown": text}),
        encoding="utf-8",
    )
    if session.device.type == "cuda" and not session.quick:
        DOCUMENT.write_text(with_section(DOCUMENT.read_text("utf-8"), "gpu", text), encoding="utf-8")
    print("\n".join(f"left out: {line}" for line in session.left_out))
    print(f"figures: {path}")
    return 0


def _document(reports: dict[str, Report], machine: dict[str, str], left_out: Sequence[str]) -> str:
    head = f"{machine['device']}, {machine['processor']}, Python {machine['python']}, torch {machine['torch']}"
    lines = ["## On a GPU", "", f"`make bench-gpu`, {datetime.now():%Y-%m-%d}, {head}.", ""]
    for report in reports.values():
        lines += [f"### {report.title}", "", report.markdown()]
    return "\n".join([*lines, *(f"- Left out: {line}" for line in left_out)])


if __name__ == "__main__":
    sys.exit(main())
