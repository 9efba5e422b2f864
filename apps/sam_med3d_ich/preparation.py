"""What `prepare.py` does: folders of NIfTI files or DICOM series to images, masks and tables."""

import csv
import io
import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from apps.sam_med3d_ich.data.dicom import Series, find_series, read_series, series_in
from apps.sam_med3d_ich.data.folders import new_folder, refuse_existing
from apps.sam_med3d_ich.data.split import SplitSizes, Subject, split_by_patient, summary_counts
from apps.sam_med3d_ich.data.table import COLUMNS, mask_key
from apps.sam_med3d_ich.data.volume import (
    MASK_SUFFIXES,
    Volume,
    read_labels,
    read_volume,
    volume_name,
    write_nifti,
)
from mlcore.console import Pace, format_duration, setup_logging
from mlcore.errors import UserError
from mlcore.files import write_text

__all__ = ["Preparation", "find_scans", "prepare_data"]

_log = logging.getLogger(__name__)

_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net numbers the channels of a case
_SHOWN = 5
_REPORT_EVERY_S = 5.0


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
        UserError: An input cannot be used, a case has no label file, the split is impossible, or `output` is not empty.
    """
    refuse_existing(output)  # before minutes of work
    scans = find_scans(source, settings)
    patients = _patients(scans, settings.patient_regex)
    _log.info("%s: %d cases of %d patients", source, len(scans), len(set(patients.values())))
    subjects: dict[str, Subject] = {}
    rows: dict[str, list[object]] = {}
    with new_folder(output) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        for scan in _with_pace(scans):
            path, positive = _convert(scan, folder, settings)
            subjects[scan.name] = Subject(scan.name, patients[scan.name], positive)
            rows[scan.name] = [path, int(positive), patients[scan.name]]
        splits = split_by_patient(list(subjects.values()), settings.sizes, seed=settings.seed)
        for split, names in splits.items():
            if names:
                write_text(folder / f"{split}.csv", _table([rows[name] for name in names]))
        if not any((folder / "images").iterdir()):
            (folder / "images").rmdir()
    print(_report(output, subjects, splits))
    return splits


# ------------------------------------------------------------------------------------------------------ finding cases


def find_scans(source: Path, settings: Preparation) -> list[Scan]:
    """The cases in `source`, sorted by name, with their label maps.

    Images are the NIfTI files in imagesTr, images or `source` itself; where there are none, each folder there (or the
    folder itself) is a case of DICOM files.

    Raises:
        UserError: There are none, names are ambiguous, or label files are missing.
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
    images: dict[str, Path | Series] = {**_nifti_images(image_dir, settings)}
    images = images or {**_dicom_images(image_dir, settings, label_dir=label_dir)}
    if not images:
        raise UserError(f"{image_dir}: no NIfTI files (.nii, .nii.gz) and no DICOM series in it")
    labels = _labels(label_dir, settings.label_suffix)
    _check_complete(images, labels, label_dir=label_dir, allow=settings.unlabelled_are_negative)
    scans = [Scan(name, images[name], labels.get(name)) for name in sorted(images)]
    _check_names(scans)
    return scans


def _nifti_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(MASK_SUFFIXES) and not p.name.startswith("."))


def _nifti_images(folder: Path, settings: Preparation) -> dict[str, Path]:
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
                f"{folder}: several channels a case ({', '.join(others[:_SHOWN])}); a CT has one. Choose it with "
                "--image_suffix _0000"
            )
    for path in files:
        name = volume_name(path).removesuffix("_0000" if settings.image_suffix is None else settings.image_suffix)
        if name in found:
            raise UserError(f"{path}: {found[name].name} would be the same case '{name}'; rename one")
        found[name] = path
    return found


def _dicom_images(folder: Path, settings: Preparation, *, label_dir: Path | None) -> dict[str, Series]:
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
            listed = "\n".join(f"  {one}" for one in series)
            raise UserError(
                f"{case}: {len(series)} DICOM series; choose with --series largest, --series each (all become cases) "
                f"or --series UID:\n{listed}"
            )
        for number, one in enumerate(series, 1):
            found[case.absolute().name + (f"_{number}" if len(series) > 1 else "")] = one
        if not series:
            _log.warning("%s: left out, no DICOM series%s in it", case, "" if settings.series == "error" else " wanted")
    return found


def _labels(folder: Path | None, suffix: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _nifti_files(folder) if folder is not None else []:
        name = volume_name(path)
        if not name.endswith(suffix):
            continue
        name = name.removesuffix(suffix) if suffix else name.removesuffix("_0000")
        if name in found:
            raise UserError(f"{path}: {found[name].name} would be the label map of the same case '{name}'; remove one")
        found[name] = path
    return found


def _check_complete(
    images: dict[str, Path | Series], labels: dict[str, Path], *, label_dir: Path | None, allow: bool
) -> None:
    missing = sorted(images.keys() - labels.keys())
    if missing and not allow:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        where = label_dir or "no label folder (labels or labelsTr) in the input"
        raise UserError(
            f"{where}: no label map for {', '.join(missing[:_SHOWN])}{more}; "
            "give --label_dir, or --unlabelled_are_negative if these cases have no bleed"
        )
    if missing and len(missing) == len(images) and labels:
        raise UserError(
            f"{label_dir}: not one label map is named like an image (images: {missing[0]}, ...; labels: "
            f"{min(labels)}, ...); --image_suffix and --label_suffix say what their names end in"
        )
    unused = sorted(labels.keys() - images.keys())
    if unused:
        _log.warning("%s: %d label maps have no image, for example %s", label_dir, len(unused), unused[0])


def _check_names(scans: Sequence[Scan]) -> None:
    seen: dict[str, str] = {}
    for scan in scans:
        first = seen.setdefault(mask_key(scan.name), scan.name)
        if first != scan.name:
            raise UserError(f"cases '{first}' and '{scan.name}' are the same number; rename one")


def _patients(scans: Sequence[Scan], regex: str | None) -> dict[str, str]:
    if regex is None:
        return {scan.name: scan.name for scan in scans}
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"--patient_regex {regex}: not a regular expression ({error})") from None
    if pattern.groups != 1:
        raise UserError(f"--patient_regex {regex}: {pattern.groups} groups; expected one, such as '(.+)_[0-9]+'")
    patients: dict[str, str] = {}
    for scan in scans:
        match = pattern.search(scan.name)
        if match is None or not match[1]:
            raise UserError(f"--patient_regex {regex}: finds no patient in the name '{scan.name}'")
        patients[scan.name] = match[1]
    return patients


# --------------------------------------------------------------------------------------------------- converting cases


def _convert(scan: Scan, folder: Path, settings: Preparation) -> tuple[str, bool]:
    """Write a case's image and mask; returns the table's path and whether there is a target."""
    if isinstance(scan.source, Path):
        volume = read_volume(scan.source)
        name = scan.name
        if settings.link:
            name, path = volume_name(scan.source), str(scan.source.absolute())
        else:
            suffix = ".nii.gz" if scan.source.name.lower().endswith(".gz") else ".nii"
            path = f"images/{name}{suffix}"
            shutil.copyfile(scan.source, folder / path)
    else:
        if settings.link:
            raise UserError(f"{scan.source.folder}: --link needs NIfTI images; DICOM series have to be converted")
        volume, name = read_series(scan.source), scan.name
        path = f"images/{name}.nii.gz"
        _write_converted(folder / path, volume)
    if scan.label is None:
        return path, False
    mask = read_labels(scan.label, like=volume, labels=settings.labels)
    write_nifti(folder / "masks" / f"{name}.nii.gz", mask, like_affine=volume.affine)
    return path, bool(mask.any())


def _write_converted(path: Path, volume: Volume) -> None:
    """As int16 where no value changes by that, which halves the file."""
    whole = np.rint(volume.array)
    fits = np.array_equal(whole, volume.array) and np.abs(whole).max() < 2**15
    write_nifti(path, whole.astype(np.int16) if fits else volume.array, like_affine=volume.affine)


def _with_pace(scans: Sequence[Scan]) -> Iterator[Scan]:
    """The scans, with a line of progress every few seconds."""
    pace, reported = Pace(len(scans)), time.monotonic()
    for done, scan in enumerate(scans, 1):
        yield scan
        pace.update(done)
        if time.monotonic() - reported > _REPORT_EVERY_S:
            reported = time.monotonic()
            _log.info("%d of %d cases, %s left", done, len(scans), format_duration(pace.eta_s))


def _table(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([COLUMNS, *rows])
    return buffer.getvalue()


def _report(output: Path, subjects: dict[str, Subject], splits: dict[str, list[str]]) -> str:
    lines = [f"{'split':<8}{'cases':>8}{'patients':>10}{'positive':>10}"]
    for split in ("train", "val", "test"):
        if splits[split]:
            cases, patients, positive = summary_counts(subjects, splits[split])
            lines.append(f"{split:<8}{cases:>8}{patients:>10}{positive:>10}")
    unused = len(subjects) - sum(map(len, splits.values()))
    if unused:
        lines.append(f"{unused} cases are in no split")
    lines.append(f"train with: --train_csv {output}/train.csv --val_csv {output}/val.csv --mask_dir {output}/masks")
    return "\n".join(lines)


def run(source: Path, output: Path, settings: Preparation) -> int:
    """`prepare.py`: convert with progress on the terminal; returns exit code 0."""
    setup_logging()
    prepare_data(source, output, settings)
    return 0
