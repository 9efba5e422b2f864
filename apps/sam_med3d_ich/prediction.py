"""What `predict.py` does: a checkpoint and volumes to masks, a table, and a comparison where the truth is known."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mlcore.base.console import Pace, format_duration, setup_logging
from mlcore.base.distributed import pick_device
from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, output_folder, write_text
from mlcore.training.engine import autocast
from quartet.apps.sam_med3d_ich.case_metrics import case_metrics, summarise
from quartet.apps.sam_med3d_ich.case_report import CaseRow, case_sections
from quartet.apps.sam_med3d_ich.data.case import Case, check_case_header, load_case
from quartet.apps.sam_med3d_ich.data.geometry import Spacing
from quartet.apps.sam_med3d_ich.data.metadata import case_metadata, not_hu
from quartet.apps.sam_med3d_ich.data.table import read_cases
from quartet.apps.sam_med3d_ich.data.volume import SUFFIXES, Volume, check_header, read_volume, volume_name, write_nifti
from quartet.apps.sam_med3d_ich.data.words import counted, together
from quartet.apps.sam_med3d_ich.inspection import draw_case
from quartet.apps.sam_med3d_ich.restore import Restored, restore
from quartet.apps.sam_med3d_ich.segmentation import Click, Segmentation, clicks_from_mask

_log = logging.getLogger(__name__)

_COLUMNS = ("input", "mask", "volume_ml", "ich_score", "remark")
_TABLE = "predictions.csv"
_SKIP = "--on_bad_input skip leaves such inputs out"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command line of `predict.py`; its help says what each means."""

    inputs: Sequence[Path]
    model_path: Path
    output_dir: Path
    csv: Path | None
    mask_dir: Path | None
    array_spacing: Spacing | None
    clicks: Sequence[str]
    threshold: float | None
    probability_map: bool
    overlays: bool
    on_bad_input: Literal["error", "skip"]
    device: str


@dataclass(frozen=True, eq=False)
class Item:
    """A volume to segment.

    Attributes:
        name: Of its output files.
        path: The volume.
        case: Its row of a table with masks, or None.
    """

    name: str
    path: Path
    case: Case | None = None


@dataclass(frozen=True)
class Done:
    """What became of an item.

    Attributes:
        path: The volume.
        mask: Name of the mask's file.
        millilitres: Volume of the mask.
        ich_score: Score of "there is a haemorrhage", 0..1, higher is more suspicious; not a probability.
        remark: Why the volume may not be in HU; mostly empty.
        compared: Its figures, where the true mask is known.
    """

    path: str
    mask: str
    millilitres: float
    ich_score: float
    remark: str
    compared: CaseRow | None

    def __str__(self) -> str:
        return f"{self.mask}: {self.millilitres:.1f} mL, haemorrhage score {self.ich_score:.2f}"


def predict(request: Request) -> int:
    """Segment everything and write the results.

    Returns:
        Exit code 0.

    Raises:
        UserError: The checkpoint, an input or the output folder cannot be used. Volumes that were finished before keep
            their masks and their rows in predictions.csv.
    """
    setup_logging()
    clicks = [_click(text) for text in request.clicks]
    items = _items(request)
    if clicks and len(items) > 1:
        raise UserError(f"--clicks belong to one volume, and there are {len(items)}; give one input")
    device = pick_device(request.device)
    restored = _with_threshold(restore(request.model_path, device=device), request.threshold)
    if restored.prompted and not clicks and request.mask_dir is None:
        raise UserError(f"{request.model_path} was trained with clicks: give --clicks X,Y,Z (voxel indices)")
    if clicks and not restored.prompted:
        _log.warning("%s was trained without clicks; how well it follows them is unknown", request.model_path)
    if clicks and not any(click.inside for click in clicks):
        _log.warning(
            "all --clicks are outside (,0), so nothing says where the bleed is and the mask may be empty or anywhere; "
            "give at least one inside"
        )
    with output_folder(request.output_dir):
        return _predict(items, restored, request=request, clicks=clicks, device=device)


def _predict(
    items: Sequence[Item], restored: Restored, *, request: Request, clicks: Sequence[Click], device: torch.device
) -> int:
    request = replace(request, array_spacing=request.array_spacing or restored.config.data.array_spacing)
    results = _Results(items, folder=request.output_dir)
    _check_headers(results, request)
    _segment_all(results, restored, request=request, clicks=clicks, device=device)
    if not results.done:
        raise UserError("none of the inputs can be used; the warnings above say why")
    results.write()  # with what was left out after the last volume
    _write_comparison(list(results.done.values()), request.output_dir)
    left_out = counted(len(results.left_out), "input")
    _log.info("%s in %s, %s left out", counted(len(results.done), "mask"), request.output_dir, left_out)
    return 0


class _Results:
    """What became of each input: a row of predictions.csv.

    Args:
        items: All of them, with different names.
        folder: Where the table goes.
    """

    def __init__(self, items: Sequence[Item], *, folder: Path) -> None:
        self.items = tuple(items)
        self.done: dict[str, Done] = {}  # by the item's name
        self.left_out: dict[str, str] = {}  # likewise, with the reason
        self._folder = folder

    @property
    def waiting(self) -> list[Item]:
        """Those of which nothing is known yet."""
        return [item for item in self.items if item.name not in self.done and item.name not in self.left_out]

    def leave_out(self, item: Item, reason: str) -> None:
        """Say why an input cannot be used."""
        self.left_out[item.name] = reason
        _log.warning("left out: %s", reason)

    def write(self) -> None:
        """Write the table, in the order of the inputs."""
        rows: list[Sequence[object]] = []
        for item in self.items:
            if item.name in self.done:
                one = self.done[item.name]
                rows.append([one.path, one.mask, f"{one.millilitres:.6f}", f"{one.ich_score:.6f}", one.remark])
            elif item.name in self.left_out:
                rows.append([str(item.path), "", "", "", f"left out: {self.left_out[item.name]}"])
        write_text(self._folder / _TABLE, csv_text([_COLUMNS, *rows]))


def _check_headers(results: _Results, request: Request) -> None:
    """Find what is refused already without its voxels: minutes of work come only after it."""
    problems: list[tuple[Item, str]] = []
    for item in results.items:
        try:
            if item.case is not None:
                check_case_header(item.case, array_spacing=request.array_spacing)
            else:
                check_header(item.path, array_spacing=request.array_spacing)
        except UserError as error:
            problems.append((item, str(error)))
    if problems and request.on_bad_input == "error":
        raise UserError(f"{together('inputs', [problem for _, problem in problems])}\n{_SKIP}")
    for item, problem in problems:
        results.leave_out(item, problem)


def _segment_all(
    results: _Results, restored: Restored, *, request: Request, clicks: Sequence[Click], device: torch.device
) -> None:
    items, done = results.waiting, results.done
    pace = Pace(len(items))
    for number, item in enumerate(items, 1):
        try:
            volume, mask = _read(item, request.array_spacing)
        except UserError as error:
            if request.on_bad_input == "error":
                finished = f"{counted(len(done), 'volume')} finished before it, see {request.output_dir / _TABLE}"
                raise UserError(f"{error}\n{f'{finished}; ' if done else ''}{_SKIP}") from None
            results.leave_out(item, str(error))
            continue
        prompts = clicks or (clicks_from_mask(mask, volume.affine) if restored.prompted and mask is not None else None)
        with autocast(restored.config.train.precision, device):
            found = restored.segmenter(volume, clicks=prompts)
        window = restored.segmenter.preprocessing.window
        done[item.name] = _write(item, volume, mask, found, request=request, window=window)
        results.write()  # each time: whatever happens to the next one, these are done
        pace.update(number)
        _log.info("%d of %d  %s  %s left", number, len(items), done[item.name], format_duration(pace.eta_s))


def _with_threshold(restored: Restored, threshold: float | None) -> Restored:
    if threshold is None:
        return restored
    if not 0 < threshold < 1:
        raise UserError(f"--threshold is a probability between 0 and 1, not {threshold}")
    return replace(restored, segmenter=replace(restored.segmenter, threshold=threshold))


def _click(text: str) -> Click:
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (3, 4) or (len(numbers) == 4 and numbers[3] not in (0, 1)):
        raise UserError(f"--clicks {text}: expected X,Y,Z or X,Y,Z,0 (outside), voxel indices of the volume")
    x, y, z = numbers[:3]
    return Click((x, y, z), inside=len(numbers) == 3 or numbers[3] == 1)


# ---------------------------------------------------------------------------------------------------------- the inputs


def _items(request: Request) -> list[Item]:
    if request.csv is not None:
        if request.inputs:
            raise UserError("give --csv or inputs, not both")
        if request.mask_dir is None:
            raise UserError("--csv needs --mask_dir, the folder of the masks; without masks give the volumes")
        cases = read_cases(request.csv, mask_dir=request.mask_dir)
        return _distinct([Item(case.name, case.image, case) for case in cases], request)
    if request.mask_dir is not None:
        raise UserError("--mask_dir goes with --csv, which says whose masks they are")
    paths = [path for given in request.inputs for path in _files(given)]
    if not paths:
        raise UserError("nothing to segment: give volumes, folders, or --csv with --mask_dir")
    return _distinct([Item(volume_name(path), path) for path in paths], request)


def _distinct(items: list[Item], request: Request) -> list[Item]:
    """The items, whose outputs overwrite neither each other nor an input."""
    inputs = {item.path.resolve() for item in items}
    seen: dict[Path, Path] = {}
    for item in items:
        names = [f"{item.name}.nii.gz", *([f"{item.name}_probability.nii.gz"] if request.probability_map else [])]
        for output in (request.output_dir / name for name in names):
            if output.resolve() in inputs:
                raise UserError(f"{output} would be overwritten by a mask; give another --output_dir")
            if output in seen:
                raise UserError(f"{seen[output]} and {item.path} would both become {output.name}; run them apart")
            seen[output] = item.path
    return items


def _files(given: Path) -> Iterator[Path]:
    if not given.exists():
        raise UserError(f"{given}: not found")
    if not given.is_dir():
        yield given
        return
    found = sorted(path for path in given.iterdir() if path.name.lower().endswith(tuple(SUFFIXES)))
    if not found:
        raise UserError(f"{given}: no volumes in this folder; expected {', '.join(SUFFIXES)}")
    yield from found


def _read(item: Item, spacing: Spacing | None) -> tuple[Volume, NDArray[np.uint8] | None]:
    if item.case is not None:
        return load_case(item.case, array_spacing=spacing)
    return read_volume(item.path, array_spacing=spacing), None


# ---------------------------------------------------------------------------------------------------------- the outputs


def _write(
    item: Item,
    volume: Volume,
    mask: NDArray[np.uint8] | None,
    found: Segmentation,
    *,
    request: Request,
    window: tuple[float, float] | None,
) -> Done:
    """Write the files of one volume."""
    folder = request.output_dir
    path = folder / f"{item.name}.nii.gz"
    write_nifti(path, found.mask, like_affine=volume.affine)
    if request.probability_map:
        write_nifti(folder / f"{item.name}_probability.nii.gz", found.probability, like_affine=volume.affine)
    if request.overlays:
        draw_case(volume, found.mask, target=mask, title=item.name, path=folder / f"{item.name}.png", window=window)
    compared = None
    if mask is not None and item.case is not None:
        figures = case_metrics(found.mask, target=mask, affine=volume.affine)
        compared = CaseRow(name=item.name, metrics=figures, ich=item.case.ich, score=found.ich_score)
    millilitres = float(found.mask.sum()) * volume.voxel_ml
    remark = _remark(item, volume, mask, window=window)
    return Done(str(item.path), path.name, millilitres, found.ich_score, remark, compared)


def _remark(item: Item, volume: Volume, mask: NDArray[np.uint8] | None, *, window: tuple[float, float] | None) -> str:
    """Why the volume may not be in HU, which is also logged."""
    known = np.zeros(volume.array.shape, dtype=np.uint8) if mask is None else mask
    remark = "; ".join(not_hu(case_metadata(volume, known), window))
    if remark:
        _log.warning("%s: perhaps not in HU, %s", item.path, remark)
    return f"perhaps not in HU: {remark}" if remark else ""


def _write_comparison(done: Sequence[Done], folder: Path) -> None:
    """The validation table, where masks are known."""
    compared = [one.compared for one in done if one.compared is not None]
    if not compared:
        return
    case_sections(compared, folder=folder)
    means = summarise(
        [row.metrics for row in compared],
        ich_scores=[row.score for row in compared],
        ich_labels=[row.ich for row in compared],
    )
    for name, value in means.items():
        _log.info("  %-20s %s", name, value if isinstance(value, int) else f"{value:.4f}")
