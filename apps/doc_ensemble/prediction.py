"""What `predict.py` does: checkpoints and pages to a table of classes, and pictures of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.console import setup_logging, with_progress
from mlcore.base.distributed import pick_device
from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, ensure_folder, output_folder, write_text
from mlcore.report.plots.contact_sheet import Tile, plot_contact_sheet
from mlcore.report.plots.style import displayable
from mlcore.run.final_evaluation import best_checkpoint
from quartet.apps.doc_ensemble.data.folders import find_files
from quartet.apps.doc_ensemble.data.pages import Page, page_count, read_page
from quartet.apps.doc_ensemble.data.table import read_table
from quartet.apps.doc_ensemble.ensemble.combine import combine
from quartet.apps.doc_ensemble.ensemble.inference import PagePredictions, predict_pages
from quartet.apps.doc_ensemble.ensemble.reading import document_pages
from quartet.apps.doc_ensemble.restore import CheckpointMember

__all__ = ["PredictRequest", "predict"]

_log = logging.getLogger(__name__)

_PER_SHEET = 24
_SIDE = 320  # pixels, longer side of a thumbnail

Problem = tuple[str, str]
"""What cannot be classified, as it was named, and the reason."""


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The command line of `predict.py`; its help says what each means."""

    inputs: Sequence[Path]
    model_path: Sequence[Path]
    csv: Path | None
    output: Path
    thumbnails: int
    batch_size: int
    device: str


def predict(request: PredictRequest) -> int:
    """Classify pages and write a table; exit code 1 where some could not be read (they are in it with the reason).

    Raises:
        UserError: There is nothing to classify, a checkpoint cannot be used, or checkpoints do not fit together.
    """
    setup_logging()
    with output_folder(request.output.absolute().parent):  # a place that cannot be written to is told before the work
        return _predict(request)


def _predict(request: PredictRequest) -> int:
    pages, problems = _wanted(request)
    paths = [_checkpoint(path) for path in request.model_path]
    members = [CheckpointMember(f"model {number}", path) for number, path in enumerate(paths, 1)]
    data = members[0].config.data
    max_pixels = round(data.max_megapixels * 1e6)
    predicted = predict_pages(
        members,
        document_pages(pages, members, max_pixels=max_pixels, fit=data.fit, skip_bad=True),
        device=pick_device(request.device),
        batch_size=request.batch_size,
    )
    chances = combine(predicted.probabilities[:, 0])
    problems += [(pages[place].key, message) for place, message in predicted.problems.items()]
    kept = [pages[row] for row in predicted.rows]
    write_text(request.output, _table(kept, chances, predicted, problems))
    _log.info("written: %s (%d pages, %d could not be read)", request.output, len(kept), len(problems))
    if request.thumbnails:
        folder = request.output.with_name(f"{request.output.stem}_pages")
        _draw(folder, kept[: request.thumbnails], chances, predicted.class_names, max_pixels=max_pixels)
    return 1 if problems else 0


def _checkpoint(path: Path) -> Path:
    """The file itself, or the best one of a run folder."""
    return (best_checkpoint(path / "checkpoints") or path) if path.is_dir() else path


def _wanted(request: PredictRequest) -> tuple[list[Page], list[Problem]]:
    """The pages; and what names none, or a file whose pages cannot be counted."""
    if request.csv is not None and request.inputs:
        raise UserError("give pages or --csv, not both")
    pages: list[Page] = []
    problems: list[Problem] = []
    if request.csv is not None:
        pages, _ = read_table(request.csv, labelled=False, unusable=problems)
    for path in (file for given in request.inputs for file in (find_files(given) if given.is_dir() else [given])):
        try:
            pages += [Page(path, number) for number in range(page_count(path))]
        except UserError as error:
            problems.append((str(path), str(error)))
    for _, reason in problems:
        _log.warning("left out: %s", reason)
    if not pages:
        reason = problems[0][1] if problems else "give images, TIFF or PDF files, folders of them, or --csv"
        raise UserError(f"nothing to classify: {reason}")
    return pages, problems


def _table(
    pages: Sequence[Page], chances: NDArray[np.float64], predicted: PagePredictions, problems: Sequence[Problem]
) -> str:
    names, guesses = predicted.class_names, chances.argmax(axis=1)
    table = [("image", "class", "probability", *(f"p_{name}" for name in names), "problem")]
    for page, guess, row in zip(pages, guesses, chances, strict=True):
        table.append((page.key, names[guess], f"{row[guess]:.6f}", *(f"{chance:.6f}" for chance in row), ""))
    table.extend((name, *[""] * (len(names) + 2), reason) for name, reason in problems)
    return csv_text(table)


def _draw(
    folder: Path, pages: Sequence[Page], chances: NDArray[np.float64], names: Sequence[str], *, max_pixels: int
) -> None:
    """Sheets of pages under their classes, in the order of the table."""
    ensure_folder(folder)
    starts = range(0, len(pages), _PER_SHEET)
    drawable = displayable(names)
    for start in with_progress(starts, total=len(starts), what="sheets of thumbnails"):
        tiles = []
        for row in range(start, min(start + _PER_SHEET, len(pages))):
            guess = int(chances[row].argmax())
            image = _small(read_page(pages[row].path, pages[row].number, max_pixels=max_pixels))
            tiles.append(
                Tile(image=image, text=drawable.labels[guess], caption=f"{pages[row].name}\n{chances[row, guess]:.0%}")
            )
        title = f"Pages {start + 1} to {start + len(tiles)} of {len(pages)}"
        title += f"\n{drawable.note}" if drawable.note else ""
        plot_contact_sheet(tiles, path=folder / f"{start // _PER_SHEET + 1:04d}.png", title=title)
    _log.info("thumbnails: %s", folder)


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE))
    return np.asarray(picture, dtype=np.uint8)
