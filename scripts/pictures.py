"""Make the pictures of the README: train the demo of every app, and cut them out of what the runs leave.

make pictures                                    # four trainings, about ten minutes on two idle cores
.venv/bin/python scripts/pictures.py --app perceiver

A picture is parts of one that the run itself wrote, as they are but for 256 colours: what is four columns wide in a
report becomes two columns, which can be read on the page. The runs are in outputs/pictures/<app>.
"""

import argparse
import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mlcore.base.files import atomic_write, ensure_folder

__all__ = ["PICTURES", "Cut", "cut_out"]

ROOT = Path(__file__).resolve().parents[1]
GAP = 12  # pixels between rows
Box = tuple[int, int, int, int]
"""Left, top, right, bottom; pixels."""


@dataclass(frozen=True)
class Cut:
    """What is taken of a demo's picture.

    Attributes:
        source: The file in the run's folder.
        rows: Rows of parts, one below the other, each of parts side by side; what is beyond the picture is left out.
        settings: Of the demo, where its own would train what no picture shows.
    """

    source: str
    rows: Sequence[Sequence[Box]]
    settings: Sequence[str] = ()


# A contact sheet has four pictures of 396 pixels side by side, below its title: here they are two and two.
SHEET = [[(0, 0, 792, 50)], [(0, 50, 792, 465)], [(792, 50, 1584, 465)]]

# Of the curves, the second axis stands below the first behind a bit of white.
PICTURES = {
    "perceiver": Cut("curves.png", [[(0, 0, 736, 444)], [(700, 4, 732, 24), (736, 0, 1440, 444)]]),
    "sam_med3d_ich": Cut(
        "best.png",
        [
            [(966, 30, 1446, 534), (0, 536, 480, 1040)],
            [(483, 536, 963, 1040), (966, 536, 1446, 1040)],
            [(0, 1044, 633, 1094)],
            [(633, 1044, 1180, 1094)],
        ],
    ),
    "multimodal_ads": Cut("wrong_ones.png", SHEET, settings=["train.ablations=false"]),
    "doc_ensemble": Cut("confused_pairs.png", SHEET),
}
"""Of each app, the picture that says most about what its runs leave."""


def cut_out(picture: Image.Image, rows: Sequence[Sequence[Box]]) -> Image.Image:
    """Parts of a picture put together, on the colour of its corner."""
    whole = picture.convert("RGB")
    parts = [[whole.crop(_inside(box, whole.size)) for box in row] for row in rows]
    parts = [[part for part in row if part.width and part.height] for row in parts]
    parts = [row for row in parts if row]
    width = max(sum(part.width for part in row) for row in parts)
    height = sum(max(part.height for part in row) + GAP for row in parts) - GAP
    joined = Image.new("RGB", (width, height), whole.getpixel((0, 0)))
    top = 0
    for row in parts:
        left = 0
        for part in row:
            joined.paste(part, (left, top))
            left += part.width
        top += max(part.height for part in row) + GAP
    return joined


def _inside(box: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return min(left, size[0]), min(top, size[1]), min(right, size[0]), min(bottom, size[1])


def train(app: str, run: Path, settings: Sequence[str]) -> None:
    """The app's demo, in a process of its own; a run that is there goes on, one that is finished is left as it is.

    Raises:
        SystemExit: It did not come to its end.
    """
    command = [sys.executable, str(ROOT / "apps" / app / "train.py"), "--demo", "--output_dir", str(run)]
    done = subprocess.run([*command, *settings], cwd=ROOT, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"pictures: the demo of {app} ended with code {done.returncode}, see {run / 'train.log'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--app", choices=PICTURES, action="append", help="make this app's alone; may be given again")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "pictures", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures", help="where the pictures go")
    arguments = parser.parse_args()
    ensure_folder(arguments.output)
    for app in arguments.app or PICTURES:
        run, cut, drawn = arguments.runs / app, PICTURES[app], io.BytesIO()
        train(app, run, cut.settings)
        with Image.open(run / cut.source) as picture:
            reduced = cut_out(picture, cut.rows).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        reduced.save(drawn, format="PNG", optimize=True)
        with atomic_write(arguments.output / f"{app}.png") as file:
            file.write(drawn.getvalue())
        print(f"{arguments.output / app}.png: {len(drawn.getvalue()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
