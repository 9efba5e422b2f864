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
from mlcore.report.plots.contact_sheet import plot_contact_sheet
from mlcore.report.plots.style import displayable
from mlcore.report.tile import Tile
from mlcore.run.final_evaluation import best_checkpoint
from quartet.apps.doc_ensemble.data.folders import find_files
from quartet.apps.doc_ensemble.data.pages import Page, page_count, read_page
from quartet.apps.doc_ensemble.data.table import read_rows
from quartet.apps.doc_ensemble.ensemble.combine import combine
from quartet.apps.doc_ensemble.ensemble.inference import NoPageReadableError, Pages, predict_pages
from quartet.apps.doc_ensemble.ensemble.members import check_members
from quartet.apps.doc_ensemble.ensemble.reading import document_pages
from quartet.apps.doc_ensemble.restore import CheckpointMember

__all__ = ["PredictRequest", "predict"]

_log = logging.getLogger(__name__)

_PER_SHEET = 24
_SIDE = 320  # pixels, longer side of a thumbnail

Wanted = tuple[str, Page | str]
"""What is to be classified, as it was named, and the page, or the reason why there is none."""


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The command line of `predict.py`; its help says what each means."""

    inputs: Sequence[Path]
    model_path: Sequence[Path]
    csv: Path | None
    base_dir: Path | None
    output: Path
    thumbnails: int
    batch_size: int
    device: str


def predict(request: PredictRequest) -> int:
    """Classify pages and write a table, a row for each in the order given.

    Returns:
        Exit code 1 where some could not be classified (they are in the table with the reason), else 0.

    Raises:
        UserError: There is nothing to classify, a checkpoint cannot be used, or checkpoints do not fit together; or
            nothing could be classified: then the table with the reasons is there.
    """
    setup_logging()
    with output_folder(request.output.absolute().parent):  # a place that cannot be written to is told before the work
        return _predict(request)


def _predict(request: PredictRequest) -> int:
    wanted = _wanted(request)
    pages = [page for _, page in wanted if isinstance(page, Page)]
    paths = [_checkpoint(path) for path in request.model_path]
    members = [CheckpointMember(f"model {number}", path) for number, path in enumerate(paths, 1)]
    max_pixels = round(max(member.config.data.max_megapixels for member in members) * 1e6)
    items = document_pages(pages, members, max_pixels=max_pixels, skip_bad=True)
    names, answers = _answers(members, items, device=request.device, batch_size=request.batch_size)
    table = _table(wanted, answers, names)
    write_text(request.output, csv_text(table))
    kept = [(page, chances) for page, chances in zip(pages, answers, strict=True) if not isinstance(chances, str)]
    _log.info("written: %s (%d pages, %d could not be read)", request.output, len(kept), len(wanted) - len(kept))
    if not kept:
        raise UserError(f"nothing could be classified, {request.output} has the reasons; the first: {table[1][-1]}")
    if request.thumbnails:
        folder = request.output.with_name(f"{request.output.stem}_pages")
        _draw(folder, kept[: request.thumbnails], names, max_pixels=max_pixels)
    return 1 if len(kept) < len(wanted) else 0


def _answers(
    members: Sequence[CheckpointMember], pages: Pages[Page], *, device: str, batch_size: int
) -> tuple[Sequence[str], list[NDArray[np.float64] | str]]:
    """Class names, and of each page the chances [C] of the classes, or the reason why it cannot be read."""
    names = check_members(members)
    if not pages.items:
        return names, []
    try:
        predicted = predict_pages(members, pages, device=pick_device(device), batch_size=batch_size)
    except NoPageReadableError as error:
        return names, [error.problems[place] for place in range(len(pages.items))]
    chances = dict(zip(predicted.rows.tolist(), combine(predicted.probabilities[:, 0]), strict=True))
    return names, [predicted.problems.get(place) or chances[place] for place in range(len(pages.items))]


def _checkpoint(path: Path) -> Path:
    """The file itself, or the best one of a run folder."""
    return (best_checkpoint(path / "checkpoints") or path) if path.is_dir() else path


def _wanted(request: PredictRequest) -> list[Wanted]:
    """What is asked for, in the order of the table or of the arguments."""
    if request.csv is not None and request.inputs:
        raise UserError("give pages or --csv, not both")
    wanted: list[Wanted] = [] if request.csv is None else list(read_rows(request.csv, base_dir=request.base_dir))
    for path in (file for given in request.inputs for file in (find_files(given) if given.is_dir() else [given])):
        try:
            pages = [Page(path, number) for number in range(page_count(path))]
            wanted += [(page.key, page) for page in pages]
        except UserError as error:
            wanted.append((str(path), str(error)))
    for _, reason in wanted:
        if isinstance(reason, str):
            _log.warning("left out: %s", reason)
    if not wanted:
        raise UserError("nothing to classify: give images, TIFF or PDF files, folders of them, or --csv")
    return wanted


def _table(
    wanted: Sequence[Wanted], answers: Sequence[NDArray[np.float64] | str], names: Sequence[str]
) -> list[tuple[str, ...]]:
    """One row for each that was asked for; `answers` are those for the pages among them, in their order."""
    table: list[tuple[str, ...]] = [("image", "class", "probability", *(f"p_{name}" for name in names), "problem")]
    rest = iter(answers)
    for name, page in wanted:
        answer = page if isinstance(page, str) else next(rest)
        if isinstance(answer, str):
            table.append((name, *[""] * (len(names) + 2), answer))
        else:
            guess = int(answer.argmax())
            table.append((name, names[guess], f"{answer[guess]:.6f}", *(f"{chance:.6f}" for chance in answer), ""))
    return table


def _draw(
    folder: Path, pages: Sequence[tuple[Page, NDArray[np.float64]]], names: Sequence[str], *, max_pixels: int
) -> None:
    """Sheets of pages under their classes, in the order of the table."""
    ensure_folder(folder)
    starts = range(0, len(pages), _PER_SHEET)
    drawable = displayable(names)
    for start in with_progress(starts, total=len(starts), what="sheets of thumbnails"):
        tiles = []
        for page, chances in pages[start : start + _PER_SHEET]:
            guess = int(chances.argmax())
            image = _small(read_page(page.path, page.number, max_pixels=max_pixels))
            tiles.append(Tile(image=image, text=drawable.labels[guess], caption=f"{page.name}\n{chances[guess]:.0%}"))
        title = f"Pages {start + 1} to {start + len(tiles)} of {len(pages)}"
        title += f"\n{drawable.note}" if drawable.note else ""
        plot_contact_sheet(tiles, path=folder / f"{start // _PER_SHEET + 1:04d}.png", title=title)
    _log.info("thumbnails: %s", folder)


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE))
    return np.asarray(picture, dtype=np.uint8)
