"""The command line of `quartet chaos`."""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError, nearest
from mlcore.cli.app import App

__all__ = ["FAULTS", "chaos"]

_DESCRIPTION = """\
Disturb real training runs of an app and compare what they end with, to the last bit, with runs that nothing disturbed.

Trains on generated data, on the CPU, as small as the app's description says, in processes of its own. Prints a table,
and writes chaos.json and report.html. A kill takes ten to twenty seconds. What follows -- is given to the training,
too, such as: -- --optimizer sgd
"""

FAULTS = (
    *("kill", "signals", "one-rank", "damage", "disk-full", "read-only", "worker", "not-finite"),
    *("trackers", "bucket", "clock", "moved"),
)
"""Faults that are tried if none is named; `soak` takes long and is tried where it is named."""


def chaos(arguments: Sequence[str], *, app: App[Any], command: Sequence[str], prog: str) -> int:
    """Parse the command line and try the faults; returns 0, or 1 where a run did not come out as it should.

    Args:
        arguments: What follows the app's name.
        app: What is trained.
        command: What Python is started with to train it.
        prog: How the command is called, for its usage line.

    Raises:
        UserError: There is no such fault, an undisturbed run fails, or this is not Linux.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, added = _parser(prog).parse_args(arguments[:end]), arguments[end + 1 :]
    if unknown := [name for name in given.faults if name not in (*FAULTS, "soak")]:
        known = ", ".join((*FAULTS, "soak"))
        raise UserError(f"no fault '{unknown[0]}'{nearest(unknown[0], (*FAULTS, 'soak'))}; there is: {known}")
    if not sys.platform.startswith("linux"):
        raise UserError("runs are watched through /proc, which Linux has; on other systems: in a container")

    from mlcore.chaos.bench import Bench, Row  # torch takes seconds to import

    folder = given.output or Path("outputs") / "chaos" / app.name
    bench = Bench([*command, *app.rehearsal, *added], folder, random.Random(given.seed), say=_say)  # noqa: S311 - instants
    rows: list[Row] = []
    for name in given.faults or FAULTS:
        bench.say(f"fault: {name}")
        rows.append(_tried(name, bench, given))
        _written(rows, app=app, folder=folder, given=given)
    print(f"\nwritten: {folder}/chaos.json and report.html")
    return int(any(row.failed for row in rows))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--kills", type=_positive, default=20, help="SIGKILLs at instants of every phase (default: 20)")
    add("--tries", type=_positive, default=3, help="tries of each of the other faults (default: 3)")
    add("--faults", nargs="+", default=[], metavar="NAME", help=f"only these: {', '.join(FAULTS)}, soak")
    add("--steps", type=_positive, default=200_000, help="soak: steps of training (default: 200000)")
    add("--seed", type=int, default=0, help="chooses instants and bits (default: 0)")
    add("--output", type=Path, metavar="DIR", help="where runs and results go (default: outputs/chaos/APP)")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def _tried(name: str, bench: Any, given: argparse.Namespace) -> Any:
    from mlcore.chaos import damage, faults, kills, servers, soak
    from mlcore.chaos.bench import tried

    single = {
        "signals": ("SIGTERM, SIGINT", kills.signalled),
        "one-rank": ("SIGTERM to one rank", kills.sigterm_to_one_rank),
        "disk-full": ("disk full", faults.disk_full),
        "read-only": ("disk read-only", faults.read_only),
        "worker": ("data-loader worker killed", faults.worker_killed),
        "not-finite": ("not finite on one rank", faults.not_finite),
        "trackers": ("tracker dead, slow, refusing", servers.trackers),
        "bucket": ("bucket dead, slow, refusing", servers.bucket),
        "clock": ("clock set back", faults.clock),
        "moved": ("run folder moved", faults.moved),
    }
    if name == "kill":
        return kills.kill(bench, given.kills)
    if name == "damage":
        return damage.damage(bench, given.tries)
    if name == "soak":
        return soak.soak(bench, given.steps)
    return tried(*single[name], bench, given.tries)


def _written(rows: Sequence[Any], *, app: App[Any], folder: Path, given: argparse.Namespace) -> None:
    """Print the newest row, and write all so far: who stops a long session keeps what it found."""
    from dataclasses import asdict

    import torch

    from mlcore.base.files import write_json
    from mlcore.report.page import RunReport, Table, describe_environment, write_report

    row = rows[-1]
    print(f"{row.fault:30} {row.outcome:32} {row.why_not or row.evidence}", flush=True)
    for problem in row.problems:
        print(f"    {problem}", flush=True)
    values = [{**asdict(row), "outcome": row.outcome} for row in rows]
    write_json(folder / "chaos.json", {"app": app.name, "seed": given.seed, "kills": given.kills, "faults": values})
    table = Table(
        "Faults",
        ("fault", "tries", "outcome", "evidence"),
        [(row.fault, row.tries, row.outcome, row.why_not or row.evidence) for row in rows],
    )
    problems = [f"{row.fault}: {problem}" for row in rows for problem in row.problems]
    environment = describe_environment(torch.device("cpu"))
    report = RunReport(f"Faults: {app.title}", warnings=problems, sections=[table], environment=environment)
    write_report(folder, report=report)
