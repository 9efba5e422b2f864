"""Write requirements/<name>.txt from requirements/<name>.in: all that pip installs, pinned, with hashes.

Run it after editing an .in file, on any machine (20 seconds, most of them to read the index)::

    make lock
    make lock ARGS="--upgrade-package X"   # X may move, and what only it needs; `uv pip compile -h` has more

uv resolves once, for Python 3.11 and newer on every platform (markers say where a line counts), and takes the hashes of
all files that the index lists, not only of this machine's. Pins stay as they are unless an .in file or a flag says
otherwise. Only wheels count, so that nothing of a package runs while it is installed. What base.txt has is not repeated
in the files that take it in with `-r`.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "requirements"
OLDEST = "3.11"
HEADER = """\
# Written by `make lock` from {name}.in: every package with the hashes of its files, against which pip checks downloads.
--only-binary :all:
"""


def compiled(names: list[str], *options: str) -> str:
    """What uv makes of these .in files together: pins with markers and hashes."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-build", *options]
    command += [f"{name}.in" for name in names]
    return subprocess.run(command, cwd=FOLDER, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603


def blocks(text: str) -> dict[str, str]:
    """The text of a requirements file by package: the lines of all its versions, with hashes and comments."""
    found: dict[str, str] = {}
    for block in re.findall(r"^[^\s#-].*\n(?:[ \t]+.*\n)*", text, re.MULTILINE):
        name = re.split(r"[\[=<>~! ;]", block, maxsplit=1)[0]
        found[name] = found.get(name, "") + block
    return found


def main(options: list[str]) -> int:
    """Resolve everything together, then write each file with what base.txt does not have already."""
    pinned = blocks("".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.txt")))
    names = sorted(path.stem for path in FOLDER.glob("*.in"))
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")
        pins.write_text("".join(pinned.values()), encoding="utf-8")
        compiled(names, *options, "--output-file", str(pins))  # the pins so far are preferred
        base: dict[str, str] = {}
        for name in ["base", *(name for name in names if name != "base")]:
            own = blocks(compiled([name], "--constraint", str(pins)))
            on_base = "-r base.in" in (FOLDER / f"{name}.in").read_text(encoding="utf-8").splitlines()
            text = HEADER.format(name=name) + ("-r base.txt\n" if on_base else "")
            text += "".join(block for package, block in own.items() if not (on_base and package in base))
            (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
            base = base or own
            print(f"{name}.txt: {len(own)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
