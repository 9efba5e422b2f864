"""Run benchmarks and put their tables into docs/BENCHMARKS.md.

    make bench                                     all of them, about an hour and a half on two cores
    make bench ARGS="padding_waste startup"        some
    python benchmarks/run.py --quick               all, with few repetitions, to see that they work; changes no document

Each runs in a process of its own. Raw figures go to outputs/benchmarks/<time>.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # when started as a script, as make does
    sys.path.insert(0, str(ROOT))

from benchmarks.common import add_common_arguments  # noqa: E402 - the line above makes it findable

# In the order of the document; the shortest first, so that a broken environment shows early.
NAMES = (
    "padding_waste",
    "loop_overhead",
    "perceiver_step",
    "startup",
    "checkpoint_stall",
    "resume",
    "sam_encoder",
    "ads_finetune",
    "ads_images",
    "ads_frozen",
    "scoring",
    "parallel",
    "doc_memory",
    "memory_planner",
    "doc_inference",
    "doc_training",
    "cifar10_vs_transformers",
    "hippocampus_vs_unet",
)
DOCUMENT = ROOT / "docs" / "BENCHMARKS.md"


def main() -> int:
    """Run what is asked for; 1 where a benchmark fails (a missed goal is a result, not a failure)."""
    parser = argparse.ArgumentParser(description="Measure against the peers, side by side.")
    parser.add_argument("names", nargs="*", help=f"which; all where none is named: {', '.join(NAMES)}")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there is: {', '.join(NAMES)}")
    reports: dict[str, Any] = {}
    failed = []
    for name in arguments.names or NAMES:
        print(f"=== {name}", flush=True)
        report = _run(name, quick=arguments.quick, data_dir=arguments.data_dir)
        if report is None:
            failed.append(name)
            continue
        reports[name] = report
        if not arguments.quick:
            text = DOCUMENT.read_text(encoding="utf-8")
            DOCUMENT.write_text(with_section(text, name, section(name, report)), encoding="utf-8")
    print(f"raw figures: {_keep(reports, quick=arguments.quick)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, *, quick: bool, data_dir: Path) -> dict[str, Any] | None:
    """The report of one benchmark, as its process wrote it; None where that failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path), "--data_dir", str(data_dir)]
        code = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, check=False).returncode
        if code != 0 or not path.is_file():
            return None
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report


def _keep(reports: dict[str, Any], *, quick: bool) -> Path:
    folder = ROOT / "outputs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now():%Y%m%d-%H%M%S}{'-quick' if quick else ''}.json"
    path.write_text(json.dumps(reports, indent=2), encoding="utf-8")
    return path


def section(name: str, report: dict[str, Any]) -> str:
    """The document's part about one benchmark: heading, command, machine, outcome."""
    machine = report["environment"]
    return "\n".join(
        [
            f"## {report['title']}",
            "",
            f"`make bench ARGS={name}`, {datetime.now():%Y-%m-%d}, {machine['processor']}, Python {machine['python']}, "
            f"torch {machine['torch']}, load before it began {machine['load']}.",
            "",
            report["markdown"],
        ]
    )


def with_section(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers of `name` replaced.

    Raises:
        ValueError: The markers are not there.
    """
    begin, end = f"<!-- {name}: written by benchmarks/run.py -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the document has no pair of markers '{begin}' and '{end}'")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content.rstrip()}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    sys.exit(main())
