"""Write requirements/constraints.txt: a pin for every package that our requirements pull in by themselves.

Run it after editing a requirements file, with the oldest supported Python (its versions install on newer ones too)::

    make lock

Nothing is installed: pip's resolver is asked what it would install. Takes one to two minutes.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "requirements"
OUTPUT = FOLDER / "constraints.txt"
OLDEST = (3, 11)
HEADER = """\
# What the requirements files pull in by themselves, pinned; `make lock` writes this file.
# Every install is given it with `-c`; a line installs nothing by itself. Resolved on 3.11, installable up to 3.13.
"""


def canonical(name: str) -> str:
    """The spelling under which package names compare equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_files() -> list[Path]:
    """Every requirements file but the one written here, sorted."""
    return sorted(path for path in FOLDER.glob("*.txt") if path != OUTPUT)


def direct_names(files: list[Path]) -> set[str]:
    """The packages that the files name themselves: they carry their own pins."""
    lines = [line.strip() for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return {canonical(re.split(r"[\[=<>~! ;]", line, maxsplit=1)[0]) for line in lines if line and line[0] not in "#-"}


def resolve(files: list[Path]) -> dict[str, str]:
    """Ask pip which versions it would install for all files together: ``{canonical name: version}``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report)]
        for path in files:
            command += ["-r", str(path)]
        subprocess.run(command, check=True)  # noqa: S603  # our own interpreter and files
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonical(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in entries}


def main() -> int:
    """Resolve and write the file; refuse on a Python newer than the oldest one supported."""
    if sys.version_info[:2] != OLDEST:
        print(f"lock: run this with Python {OLDEST[0]}.{OLDEST[1]}, the oldest one supported", file=sys.stderr)
        return 2
    files = requirement_files()
    direct = direct_names(files)
    pins = [f"{name}=={version}\n" for name, version in sorted(resolve(files).items()) if name not in direct]
    OUTPUT.write_text(HEADER + "".join(pins), encoding="utf-8")
    print(f"{len(pins)} pins written to {OUTPUT.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
