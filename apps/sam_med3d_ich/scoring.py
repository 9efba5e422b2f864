"""How a trained model segments volumes: files, arrays and DICOM series to masks, millilitres and haemorrhage scores."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.run.decision import DECISION, Decision
from mlcore.run.networks import Network
from mlcore.run.scorer import Item, Shown, decision_of
from quartet.apps.sam_med3d_ich.bundle.writing import write_bundle
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS, case_metrics
from quartet.apps.sam_med3d_ich.comparison import write_comparison
from quartet.apps.sam_med3d_ich.data.arrays import as_float, checked_image
from quartet.apps.sam_med3d_ich.data.case import Case, check_case_header, load_case
from quartet.apps.sam_med3d_ich.data.dicom import holds_series, read_series, series_in
from quartet.apps.sam_med3d_ich.data.geometry import checked_spacing, file_suffix
from quartet.apps.sam_med3d_ich.data.metadata import case_metadata, not_hu
from quartet.apps.sam_med3d_ich.data.preprocess import Prepared, prepare
from quartet.apps.sam_med3d_ich.data.table import MaskFolder
from quartet.apps.sam_med3d_ich.data.volume import (
    SUFFIXES,
    Volume,
    check_header,
    read_volume,
    write_nifti,
)
from quartet.apps.sam_med3d_ich.data.words import counted, together
from quartet.apps.sam_med3d_ich.inspection import draw_case, to_ras
from quartet.apps.sam_med3d_ich.naming import PROBABILITY, names_of, stem
from quartet.apps.sam_med3d_ich.restore import make_segmenter
from quartet.apps.sam_med3d_ich.scene import AxialSlices
from quartet.apps.sam_med3d_ich.segmentation import Click, clicks_from_mask
from quartet.apps.sam_med3d_ich.windows import Windows, describe, make_module, signature_of

__all__ = ["VolumePrediction", "VolumeScorer", "describe", "make_module", "make_scorer", "signature_of"]
__all__ += ["write_bundle"]

_log = logging.getLogger(__name__)

_AXES = "RAS"
_BETWEEN = "a probability between 0 and 1"
_VOXEL = "X,Y,Z or X,Y,Z,0 (outside), voxel indices of the volume"

Mask = NDArray[np.uint8]
Read = tuple[Item, Volume, Prepared, Mask | None, str]
"""An item, its volume as stored and on the model's grid, its true mask where that is known, and a remark."""


@dataclass(eq=False, kw_only=True)
class VolumePrediction:
    """The prediction of a volume; arrays lie as it does.

    Attributes:
        volume: It.
        probability: Of each voxel to be in the mask, float32 [X, Y, Z].
        mask: uint8 [X, Y, Z], 0 and 1.
        ich_score: Score of "there is a haemorrhage", 0..1, higher is more suspicious; not a probability.
        remark: Why the volume may not be in HU; mostly empty.
        target: The true mask, where it is known.
        mask_file: Name of the mask's file, once it is written.
        threshold: Probability from which a voxel is inside.
        min_volume_ml: Smaller parts were left out.
    """

    volume: Volume
    probability: NDArray[np.float32]
    mask: Mask
    ich_score: float
    remark: str = ""
    target: Mask | None = None
    mask_file: str = ""
    threshold: float = 0.5
    min_volume_ml: float = 0.0

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index to RAS+ mm, [4, 4]."""
        return self.volume.affine

    @property
    def millilitres(self) -> float:
        """Volume of the mask."""
        return float(self.mask.sum()) * self.volume.voxel_ml

    def row(self) -> list[object]:
        """File of the mask, millilitres, score and remark; with a true mask also the figures of `CaseMetrics`."""
        row: list[object] = [self.mask_file, self.millilitres, self.ich_score, self.remark]
        if self.target is not None:
            row += case_metrics(self.mask, target=self.target, affine=self.affine).to_row()
        return row


def make_scorer(about: Mapping[str, Any], network: Network, options: Mapping[str, str]) -> "VolumeScorer":
    """The scorer of what `describe` gave, with the options that `APP.options` names.

    Raises:
        UserError: An option has no sensible value, the run needs clicks and has none or its export cannot take them, or
            its decision is not about masks.
    """
    decision = decision_of(about)
    if decision is not None and decision.kind != "mask":
        classes = f" ({', '.join(decision.class_names)})" if decision.class_names else ""
        raise UserError(f"{DECISION} is between classes{classes}, and this model marks voxels: it is another run's")
    return VolumeScorer(about, network, options, decision)


class VolumeScorer:
    """A `mlcore.run.scorer.Scorer`; an item's content is a `Volume`, or an array [X, Y, Z] in HU.

    Args:
        about: What `describe` gave.
        network: Computes windows.
        options: As texts.
        decision: The run's; None: it left none.

    Raises:
        UserError: As `make_scorer`.
    """

    batch_size = 1
    suffixes: Sequence[str] = SUFFIXES

    def __init__(
        self, about: Mapping[str, Any], network: Network, options: Mapping[str, str], decision: Decision | None
    ) -> None:
        self.network, self._about = network, about
        windows = Windows(about, network)
        self._segmenter = replace(make_segmenter(about, windows, decision), flips=_flips(options.get("flips", "false")))
        self._prompted, self._spacing = about["prompted"], about["array_spacing"]
        if "threshold" in options:
            self._segmenter = replace(self._segmenter, threshold=_threshold(options["threshold"]))
        if "array_spacing" in options:
            x, y, z = _numbers("array_spacing", options["array_spacing"], (3,), "three voxel sizes in mm, X Y Z")
            self._spacing = x, y, z
        self._clicks = [_click(text) for text in options.get("clicks", "").split()]
        self._maps, self._overlays = (_yes(name, options) for name in ("probability_map", "overlays"))
        self._masks = MaskFolder(Path(options["mask_dir"])) if "mask_dir" in options else None
        self._names: Mapping[tuple[Path | None, int], str] = {}
        self.columns: Sequence[str] = ("mask", "millilitres", "ich_score", "remark")
        self.inputs: Mapping[str, Sequence[str]] = {"path": ("path", "image")}
        if self._masks is not None:
            self.columns, self.inputs = (*self.columns, *FIELDS), {**self.inputs, "ich": ("ich",)}
        self._check_clicks(windows)

    def _check_clicks(self, windows: Windows) -> None:
        if self._clicks and not windows.takes_clicks:
            raise UserError("this network takes no clicks: give a run of SAM-Med3D, or such an export's weights")
        if self._clicks and not self._prompted:
            _log.warning("the model was trained without clicks; how well it follows them is unknown")
        if self._clicks and not any(click.inside for click in self._clicks):
            _log.warning(
                "all clicks are outside (,0), so nothing says where the bleed is and the mask may be empty or "
                "anywhere; give at least one inside"
            )

    def _want_clicks(self) -> None:
        """Raise `UserError` where nothing says where to look; an export, which has nothing to look at, needs none."""
        if self._prompted and not self._clicks and self._masks is None:
            raise UserError("the model was trained with clicks: give clicks, X,Y,Z (voxel indices)")

    @property
    def _window(self) -> tuple[float, float] | None:
        return self._segmenter.preprocessing.window

    def takes(self, folder: Path) -> bool:
        """Whether it is one of DICOM files."""
        return holds_series(folder)

    def items(self, path: Path) -> Sequence[Item]:
        """A file is one; of a folder each DICOM series whose files are in it."""
        if path.is_dir():
            series = series_in(path)
            if not series:
                raise UserError(f"{path}: no DICOM series in this folder")
            if len(series) == 1:
                return [Item(str(path), path)]
            return [Item(f"{path}, series {number}", path, number) for number in range(1, len(series) + 1)]
        if file_suffix(path) not in SUFFIXES:
            raise UserError(f"{path}: this model reads {', '.join(SUFFIXES)}, and folders of DICOM files")
        return [Item(str(path), path)]

    def before(self, items: Iterable[Item], *, files: Path | None, strict: bool) -> None:
        """Tell what is wrong with headers before minutes of work, and find names for the files.

        Raises:
            UserError: Several volumes and clicks; files that would overwrite each other or an input, or that are
                wanted and have no place; masks without a table; `strict`, and headers say that inputs cannot be used.
        """
        found = list(items)
        self._want_clicks()
        if self._clicks and len(found) > 1:
            raise UserError(f"clicks belong to one volume, and there are {len(found)}; give one input")
        if self._masks is not None and not all("ich" in dict(item.values) for item in found):
            raise UserError("mask_dir goes with a table, whose columns path and ich say whose masks they are")
        if files is not None:
            self._names = names_of(found, files)
        elif self._maps or self._overlays:
            raise UserError("probability_map and overlays are files; say where they go with --files DIR")
        problems = [problem for item in found if (problem := self._problem(item))]
        if problems and strict:
            raise together("inputs", problems)
        if problems:
            _log.warning("%s cannot be used; the first: %s", counted(len(problems), "input"), problems[0])

    def after(self, output: Path) -> None:
        """The validation table (cases.csv) and its pictures beside the output, where the true masks are known."""
        if self._masks is not None:
            write_comparison(output, path_columns=self.inputs["path"])

    def load(self, item: Item) -> Read:
        """The volume as stored and on the model's grid; raises `UserError` where it is none."""
        self._want_clicks()
        volume, target = self._volume(item)
        known = np.zeros(volume.array.shape, dtype=np.uint8) if target is None else target
        doubts = "; ".join(not_hu(case_metadata(volume, known), self._window))
        remark = f"perhaps not in HU: {doubts}" if doubts else ""
        return item, volume, prepare(volume, self._segmenter.preprocessing), target, remark

    def collate(self, samples: Sequence[Read]) -> Sequence[Read]:
        """As they are: volumes differ in size."""
        return samples

    def predict(self, batch: Sequence[Read]) -> list[VolumePrediction]:
        """Masks of the path and the arithmetic of the run's evaluations."""
        return [self._predict(*one) for one in batch]

    def mean(self, predictions: Sequence[VolumePrediction]) -> VolumePrediction:
        """Means of the probabilities and scores that several runs give a volume, at the mean of their points."""
        first = predictions[0]
        probability = np.asarray(np.mean([one.probability for one in predictions], axis=0, dtype=np.float32))
        names = ("threshold", "min_volume_ml", "ich_score")
        least, smallest, score = (float(np.mean([getattr(one, name) for one in predictions])) for name in names)
        together = replace(self._segmenter, threshold=least, min_volume_ml=smallest)
        return replace(
            first,
            probability=probability,
            mask=together.mask(probability, first.volume.voxel_ml),
            ich_score=score,
            threshold=least,
            min_volume_ml=smallest,
        )

    def examples(self) -> list[dict[str, Tensor]]:
        """Windows of noise: two, one, three; with clicks a few, one, and one that is no point."""
        generator, side = torch.Generator().manual_seed(0), self._segmenter.model.side
        found: list[dict[str, Tensor]] = []
        for batch, clicks in ((2, 3), (1, 1), (3, 2)):
            example = {"image": torch.randn(batch, 1, side, side, side, generator=generator)}
            if self._prompted:
                example["positions"] = torch.rand(batch, clicks, 3, generator=generator) * (side - 1)
                example["labels"] = torch.randint(-1, 2, (batch, clicks), generator=generator)
            found.append(example)
        return found

    def show(self, _item: Item, prediction: VolumePrediction) -> Shown:
        """The axial slices with the mask over them, from its widest one."""
        image, affine = to_ras(prediction.volume.array, prediction.affine)
        mask = AxialSlices(to_ras(prediction.mask, prediction.affine)[0], affine=affine, mask=True)
        return Shown(
            answer=f"{prediction.millilitres:.1f} mL",
            bars={"score of a haemorrhage (no probability)": {"score": prediction.ich_score}},
            pictures=AxialSlices(image, affine=affine, window=self._window),
            overlays=mask,
            first=mask.widest,
            files={"mask.nii.gz": lambda path: write_nifti(path, prediction.mask, like_affine=prediction.affine)},
            notes=[*filter(None, [prediction.remark]), "The patient's right is on the left of the picture."],
        )

    def save(self, item: Item, prediction: VolumePrediction, folder: Path) -> None:
        """Write `{name}.nii.gz`, and where asked for `{name}_probability.nii.gz` and `{name}.png`."""
        name = self._names.get((item.path, item.part)) or stem(item)
        prediction.mask_file = f"{name}.nii.gz"
        write_nifti(folder / prediction.mask_file, prediction.mask, like_affine=prediction.affine)
        if self._maps:
            path = folder / f"{name}{PROBABILITY}.nii.gz"
            write_nifti(path, prediction.probability, like_affine=prediction.affine)
        if self._overlays:
            path = folder / f"{name}.png"
            volume, target = prediction.volume, prediction.target
            draw_case(volume, prediction.mask, target=target, title=name, path=path, window=self._window)

    def _predict(
        self, item: Item, volume: Volume, prepared: Prepared, target: Mask | None, remark: str
    ) -> VolumePrediction:
        clicks: Sequence[Click] | None = self._clicks or None
        if clicks is None and self._prompted and target is not None:
            clicks = clicks_from_mask(target, volume.affine)
        found = self._segmenter(volume, clicks=clicks, prepared=prepared)
        if remark:
            _log.warning("%s: %s", item.name, remark)
        return VolumePrediction(
            volume=volume,
            probability=found.probability,
            mask=found.mask,
            ich_score=found.ich_score,
            remark=remark,
            target=target,
            threshold=self._segmenter.threshold,
            min_volume_ml=self._segmenter.min_volume_ml,
        )

    def _volume(self, item: Item) -> tuple[Volume, Mask | None]:
        """As stored, and its true mask, where that is known."""
        if isinstance(item.content, Volume):
            return item.content, None
        if item.content is not None:
            return self._of_array(Path(item.name), item.content), None
        if item.path is None:
            raise UserError(f"{item.name}: names no file; expected one in the column path")
        if self._masks is not None:
            return load_case(self._case(item, item.path), array_spacing=self._spacing)
        if item.path.is_dir():
            return _of_series(item.path, item.part), None
        return read_volume(item.path, array_spacing=self._spacing), None

    def _of_array(self, name: Path, content: Any) -> Volume:
        array = checked_image(name, as_float(name, content))
        if self._spacing is None:
            raise UserError(f"{name}: an array without a voxel size; give array_spacing (mm), or a Volume")
        return Volume(array, np.diag([*checked_spacing(name, self._spacing), 1.0]), source=str(name))

    def _case(self, item: Item, path: Path) -> Case:
        assert self._masks is not None  # noqa: S101 - asked before
        return self._masks.case(path, item.value("ich"), patient_id="", origin=item.name)

    def _problem(self, item: Item) -> str:
        """What can be told of an item without reading voxels; mostly nothing."""
        try:
            if item.path is None or item.path.is_dir():
                return ""
            if self._masks is None:
                check_header(item.path, array_spacing=self._spacing)
            else:
                check_case_header(self._case(item, item.path), array_spacing=self._spacing)
        except UserError as error:
            return str(error)
        return ""


def _of_series(folder: Path, number: int) -> Volume:
    """A series of a folder, counted from 1; 0 is the only one."""
    series = series_in(folder)
    if number > len(series) or not series:
        raise UserError(f"{folder}: {len(series)} DICOM series in this folder, not {max(1, number)}")
    if not number and len(series) > 1:
        raise UserError(
            f"{folder}: {len(series)} DICOM series; give the folder itself instead of a table, and each is predicted"
        )
    return read_series(series[max(0, number - 1)])


# ------------------------------------------------------------------------------------------------------------- options


def _numbers(name: str, text: str, counts: Sequence[int], expected: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise UserError(f"{name}={text}: expected {expected}")
    return numbers


def _threshold(text: str) -> float:
    (value,) = _numbers("threshold", text, (1,), _BETWEEN)
    if not 0 < value < 1:
        raise UserError(f"threshold={text}: expected {_BETWEEN}")
    return value


def _click(text: str) -> Click:
    x, y, z, *inside = _numbers("clicks", text, (3, 4), _VOXEL)
    if inside not in ([], [0], [1]):
        raise UserError(f"clicks={text}: expected {_VOXEL}")
    return Click((x, y, z), inside=inside != [0])


def _flips(text: str) -> tuple[int, ...]:
    """Axes of the model's grid."""
    letters = {"false": "", "true": "R"}.get(text, text)
    if len(set(letters)) != len(letters) or not set(letters) <= set(_AXES):
        raise UserError(f"flips={text}: expected false, true (left and right), or some of the axes RAS")
    return tuple(_AXES.index(letter) for letter in letters)


def _yes(name: str, options: Mapping[str, str]) -> bool:
    text = options.get(name, "false")
    if text not in ("true", "false"):
        raise UserError(f"{name}={text}: expected true or false")
    return text == "true"
