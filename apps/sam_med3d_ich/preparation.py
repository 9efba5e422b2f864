"""What `prepare.py` does: folders of NIfTI files or DICOM series to images, masks and tables."""

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlcore.base.console import setup_logging, with_progress
from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, write_text
from quartet.apps.sam_med3d_ich.data.dicom import Series, find_series, read_series, series_in
from quartet.apps.sam_med3d_ich.data.folders import new_folder, refuse_existing
from quartet.apps.sam_med3d_ich.data.geometry import is_orthogonal
from quartet.apps.sam_med3d_ich.data.split import SplitSizes, Subject, split_by_patient, summary_counts, wanted_counts
from quartet.apps.sam_med3d_ich.data.straighten import straightened, straightened_mask
from quartet.apps.sam_med3d_ich.data.table import COLUMNS, mask_key
from quartet.apps.sam_med3d_ich.data.volume import (
    MASK_SUFFIXES,
    Volume,
    fits,
    read_geometry,
    read_labels,
    read_volume,
    volume_name,
    write_nifti,
)
from quartet.apps.sam_med3d_ich.data.words import counted, listed, together

__all__ = ["Preparation", "find_scans", "prepare_data"]

_log = logging.getLogger(__name__)

_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net numbers the channels of a case
_SHOWN = 5

Mask = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Settings of a conversion.

    Attributes:
        sizes: How many cases go to which split.
        seed: Names the draw of the split.
        labels: Label values that are target; None: all above 0.
        label_dir: Folder of the label maps; None: labelsTr or labels in the input folder.
        image_suffix: What image names end in, beside the case's name; None: "_0000" or nothing.
        label_suffix: What label names end in.
        patient_regex: Its one group finds the patient in the case's name; None: the whole name.
        series: Where a folder holds several DICOM series: "error", "each", "largest", or a series UID to take.
        link: Tables refer to the original images; nothing is copied.
        unlabelled_are_negative: A case without a label file has no target, instead of being an error.
        orthogonal: Tilted grids are resampled to right angles, and unevenly spaced DICOM slices to even ones.
    """

    sizes: SplitSizes = field(default_factory=SplitSizes)
    seed: int = 0
    labels: tuple[int, ...] | None = None
    label_dir: Path | None = None
    image_suffix: str | None = None
    label_suffix: str = ""
    patient_regex: str | None = None
    series: str = "error"
    link: bool = False
    unlabelled_are_negative: bool = False
    orthogonal: bool = False


@dataclass(frozen=True)
class Scan:
    """A case to convert: its name, its image (a NIfTI file or a DICOM series), its label map if there is one."""

    name: str
    source: Path | Series
    label: Path | None


def prepare_data(source: Path, output: Path, settings: Preparation) -> dict[str, list[str]]:
    """Convert all cases of `source` into a new folder `output`: images/, masks/, train.csv, val.csv, perhaps test.csv.

    The folder appears when everything is done, or not at all.

    Returns:
        The case names of each split.

    Raises:
        UserError: Inputs cannot be used or cases have no label file (all are named together), the split is impossible,
            or `output` is not empty.
    """
    refuse_existing(output)  # before minutes of work
    if settings.link and settings.orthogonal:
        raise UserError("--orthogonal writes images, --link refers to those there are; give one of them")
    problems: list[str] = []
    scans = find_scans(source, settings, problems=problems)
    patients = _patients(scans, settings.patient_regex, problems=problems)
    wanted_counts(settings.sizes, total=len(scans))
    whose = counted(len(set(patients.values())), "patient")
    _log.info("%s: %s of %s", source, counted(len(scans), "case"), whose)
    subjects, rows = dict[str, Subject](), dict[str, list[object]]()
    remarks: list[tuple[str, str]] = []
    with new_folder(output) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        for scan, volume, mask in _readable(scans, settings, problems=problems):
            if problems:  # nothing will come of it; the others are only read, to tell of all at once
                continue
            path = _write(scan, volume, mask, folder=folder, link=settings.link)
            positive = mask is not None and bool(mask.any())
            subjects[scan.name] = Subject(scan.name, patients[scan.name], positive)
            rows[scan.name] = [path, int(positive), patients[scan.name]]
            remarks += [(scan.name, remark) for remark in (*volume.remarks, *volume.resampled)]
        if problems:
            raise together(source, problems)
        splits = split_by_patient(list(subjects.values()), settings.sizes, seed=settings.seed)
        for split, names in splits.items():
            if names:
                table = csv_text([COLUMNS, *(rows[name] for name in names)], exact=True)
                write_text(folder / f"{split}.csv", table)
        if remarks:
            write_text(folder / "remarks.csv", csv_text([("case", "remark"), *remarks]))
        if not any((folder / "images").iterdir()):
            (folder / "images").rmdir()
    print(_report(output, subjects, splits, remarks=remarks))
    return splits


# ------------------------------------------------------------------------------------------------------ finding cases


def find_scans(source: Path, settings: Preparation, *, problems: list[str]) -> list[Scan]:
    """The cases in `source`, sorted by name, with their label maps.

    Images are the NIfTI files in imagesTr, images or `source` itself; where there are none, each folder there (or the
    folder itself) is a case of DICOM files.

    Args:
        source: The folder.
        settings: How names are read.
        problems: What is wrong with single cases is added to it: ambiguous names, missing label files.

    Raises:
        UserError: There are none, or the settings do not fit the folder.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    image_dir = next((source / name for name in ("imagesTr", "images") if (source / name).is_dir()), source)
    label_dir = settings.label_dir or next(
        (source / name for name in ("labelsTr", "labels") if (source / name).is_dir()), None
    )
    if label_dir is None and settings.label_suffix:
        label_dir = image_dir
    if label_dir is not None and not label_dir.is_dir():
        raise UserError(f"{label_dir}: no such folder of label maps")
    if label_dir == image_dir and not settings.label_suffix:
        raise UserError(f"{label_dir}: images and label maps in one folder; tell them apart with --label_suffix")
    images: dict[str, Path | Series] = {**_nifti_images(image_dir, settings, problems=problems)}
    if not images:
        images = {**_dicom_images(image_dir, settings, label_dir=label_dir, problems=problems)}
        if images and settings.link:
            raise UserError(f"{image_dir}: --link needs NIfTI images; DICOM series have to be converted")
    if not images:
        raise UserError(f"{image_dir}: no NIfTI files (.nii, .nii.gz) and no DICOM series in it")
    labels = _labels(label_dir, settings.label_suffix, problems=problems)
    _check_complete(images, labels, label_dir=label_dir, allow=settings.unlabelled_are_negative, problems=problems)
    scans = [Scan(name, images[name], labels.get(name)) for name in sorted(images)]
    _check_names(scans, problems=problems)
    return scans


def _nifti_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(MASK_SUFFIXES) and not p.name.startswith("."))


def _nifti_images(folder: Path, settings: Preparation, *, problems: list[str]) -> dict[str, Path]:
    files = _nifti_files(folder)
    if settings.label_suffix:
        files = [path for path in files if not volume_name(path).endswith(settings.label_suffix)]
    found: dict[str, Path] = {}
    if settings.image_suffix is not None:
        files = [path for path in files if volume_name(path).endswith(settings.image_suffix)]
    elif folder.name == "imagesTr":
        others = [path.name for path in files if not volume_name(path).endswith("_0000")]
        if any(_CHANNEL.search(volume_name(path)) for path in files) and others:
            raise UserError(
                f"{folder}: several channels a case ({listed(others, shown=_SHOWN)}); a CT has one. Choose it with "
                "--image_suffix _0000"
            )
    for path in files:
        name = volume_name(path).removesuffix("_0000" if settings.image_suffix is None else settings.image_suffix)
        if found.setdefault(name, path) != path:
            problems.append(f"{path}: {found[name].name} would be the same case '{name}'; rename one")
    return found


def _dicom_images(
    folder: Path, settings: Preparation, *, label_dir: Path | None, problems: list[str]
) -> dict[str, Series]:
    folders = [folder]
    if not series_in(folder):
        folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        folders = [path for path in folders if label_dir is None or path.resolve() != label_dir.resolve()]
    found: dict[str, Series] = {}
    for case in folders:
        series = find_series(case)
        if settings.series not in ("error", "each", "largest"):
            series = [one for one in series if one.uid == settings.series]
        elif settings.series == "largest":
            series = sorted(series, key=lambda one: -len(one.files))[:1]
        if len(series) > 1 and settings.series != "each":
            choices = "\n".join(f"  {one}" for one in series)
            problems.append(
                f"{case}: {len(series)} DICOM series; choose with --series largest, --series each (all become cases) "
                f"or --series UID:\n{choices}"
            )
            series = series[:1]
        for number, one in enumerate(series, 1):
            found[case.absolute().name + (f"_{number}" if len(series) > 1 else "")] = one
        if not series:
            _log.warning("%s: left out, no DICOM series%s in it", case, "" if settings.series == "error" else " wanted")
    return found


def _labels(folder: Path | None, suffix: str, *, problems: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _nifti_files(folder) if folder is not None else []:
        name = volume_name(path)
        if not name.endswith(suffix):
            continue
        name = name.removesuffix(suffix) if suffix else name.removesuffix("_0000")
        if found.setdefault(name, path) != path:
            problems.append(f"{path}: {found[name].name} would be the label map of the same case '{name}'; remove one")
    return found


def _check_complete(
    images: dict[str, Path | Series],
    labels: dict[str, Path],
    *,
    label_dir: Path | None,
    allow: bool,
    problems: list[str],
) -> None:
    missing = sorted(images.keys() - labels.keys())
    if labels and len(missing) == len(images):
        raise UserError(
            f"{label_dir}: not one label map is named like an image (images: {missing[0]}, ...; labels: "
            f"{min(labels)}, ...); --image_suffix and --label_suffix say what their names end in"
        )
    if missing and not allow:
        where = label_dir or "no label folder (labels or labelsTr) in the input"
        problem = (
            f"{where}: no label map for {listed(missing, shown=_SHOWN)}; "
            "give --label_dir, or --unlabelled_are_negative if these cases have no bleed"
        )
        if not labels:  # a matter of where they are, not of single cases
            raise UserError(problem)
        problems.append(problem)
    unused = sorted(labels.keys() - images.keys())
    if unused:
        _log.warning("%s: label maps without an image: %s", label_dir, listed(unused, shown=_SHOWN))


def _check_names(scans: Sequence[Scan], *, problems: list[str]) -> None:
    seen: dict[str, str] = {}
    for scan in scans:
        first = seen.setdefault(mask_key(scan.name), scan.name)
        if first != scan.name:
            problems.append(f"cases '{first}' and '{scan.name}' are the same number; rename one")


def _patients(scans: Sequence[Scan], regex: str | None, *, problems: list[str]) -> dict[str, str]:
    if regex is None:
        return {scan.name: scan.name for scan in scans}
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"--patient_regex {regex}: not a regular expression ({error})") from None
    if pattern.groups != 1:
        raise UserError(f"--patient_regex {regex}: {pattern.groups} groups; expected one, such as '(.+)_[0-9]+'")
    found = {scan.name: pattern.search(scan.name) for scan in scans}
    patients = {name: match[1] for name, match in found.items() if match is not None and match[1]}
    strange = [name for name in found if name not in patients]
    if strange:
        problem = f"--patient_regex {regex}: finds no patient in the name of {listed(strange, shown=_SHOWN)}"
        if not patients:  # a matter of the expression, not of single cases
            raise UserError(problem)
        problems.append(problem)
    return patients


# --------------------------------------------------------------------------------------------------- converting cases


def _readable(
    scans: Sequence[Scan], settings: Preparation, *, problems: list[str]
) -> Iterator[tuple[Scan, Volume, Mask | None]]:
    """The cases with image and mask (if there is a label map); those that cannot be read are added to `problems`."""
    for scan in with_progress(scans, total=len(scans), what="cases"):
        try:
            volume, mask = _read(scan, settings)
        except UserError as error:
            problems.append(str(error))
        else:
            for remark in (*volume.remarks, *volume.resampled):
                _log.warning("%s: %s", scan.name, remark)
            yield scan, volume, mask


def _read(scan: Scan, settings: Preparation) -> tuple[Volume, Mask | None]:
    if isinstance(scan.source, Path):
        volume = read_volume(scan.source)
    else:
        volume = read_series(scan.source, even_out=settings.orthogonal)
    if not settings.orthogonal or is_orthogonal(volume.affine):
        return volume, None if scan.label is None else read_labels(scan.label, like=volume, labels=settings.labels)
    straight = straightened(volume)
    if scan.label is None:
        return straight, None
    if fits(read_geometry(scan.label), straight.geometry):  # drawn on what another program had straightened
        return straight, read_labels(scan.label, like=straight, labels=settings.labels)
    mask = read_labels(scan.label, like=volume, labels=settings.labels)
    return straight, straightened_mask(mask, volume.affine)


def _write(scan: Scan, volume: Volume, mask: Mask | None, *, folder: Path, link: bool) -> str:
    """Write a case's image and mask; returns the table's path of the image."""
    name = scan.name
    if not isinstance(scan.source, Path) or volume.resampled:
        path = f"images/{name}.nii.gz"
        _write_converted(folder / path, volume)
    elif link:
        name, path = volume_name(scan.source), str(scan.source.absolute())
    else:
        suffix = ".nii.gz" if scan.source.name.lower().endswith(".gz") else ".nii"
        path = f"images/{name}{suffix}"
        shutil.copyfile(scan.source, folder / path)
    if mask is not None:
        write_nifti(folder / "masks" / f"{name}.nii.gz", mask, like_affine=volume.affine)
    return path


def _write_converted(path: Path, volume: Volume) -> None:
    """As int16 where no value changes by that, which halves the file."""
    whole = np.rint(volume.array)
    small = np.array_equal(whole, volume.array) and np.abs(whole).max() < 2**15
    array = whole.astype(np.int16) if small else volume.array
    write_nifti(path, array, like_affine=volume.affine, remarks=volume.remarks)


def _report(
    output: Path, subjects: dict[str, Subject], splits: dict[str, list[str]], *, remarks: Sequence[tuple[str, str]]
) -> str:
    lines = [f"{'split':<8}{'cases':>8}{'patients':>10}{'positive':>10}"]
    for split in ("train", "val", "test"):
        if splits[split]:
            cases, patients, positive = summary_counts(subjects, splits[split])
            lines.append(f"{split:<8}{cases:>8}{patients:>10}{positive:>10}")
    unused = len(subjects) - sum(map(len, splits.values()))
    if unused:
        lines.append(f"in no split: {counted(unused, 'case')}")
    if remarks:
        lines.append(f"{counted(len({name for name, _ in remarks}), 'case')} with remarks: {output}/remarks.csv")
    lines.append(f"train with: --train_csv {output}/train.csv --val_csv {output}/val.csv --mask_dir {output}/masks")
    return "\n".join(lines)


def run(source: Path, output: Path, settings: Preparation) -> int:
    """`prepare.py`: convert with progress on the terminal; returns exit code 0."""
    setup_logging()
    prepare_data(source, output, settings)
    return 0
