"""What `prepare.py` does: a folder or any table of pictures to the tables that training reads."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlcore.base.console import setup_logging, with_progress
from mlcore.base.errors import UserError
from mlcore.base.files import csv_text, output_folder, write_text
from mlcore.config.compose import Request, compose, group_choices
from mlcore.data.images import find_images, read_image
from mlcore.data.places import Places
from mlcore.data.records import failed, read_records
from quartet.apps.multimodal_ads.app import APP
from quartet.apps.multimodal_ads.config import AdsConfig, TextEncoderConfig
from quartet.apps.multimodal_ads.data.duplicates import picture_groups
from quartet.apps.multimodal_ads.data.ocr import check_tesseract, recognise
from quartet.apps.multimodal_ads.data.split import stratified_split
from quartet.apps.multimodal_ads.data.table import COLUMNS, LABELS, AdRow, clean_text, find_image
from quartet.apps.multimodal_ads.text.encoder import AnyTextEncoder, load_text
from quartet.apps.multimodal_ads.text.truncation import truncation

__all__ = ["Preparation", "Sources", "prepare_data", "read_source", "run"]

_log = logging.getLogger(__name__)

_FOLDERS = {"ad": 1, "not_ad": 0}
_SPLITS = ("train", "val", "test")
_RECORD = "ocr.jsonl"
_LEFT_OUT = "left_out.csv"


Problem = tuple[int, str, str]
"""Place of a row in its source, its image as it is named there, and why it cannot be used."""

LeftOut = tuple[str, str, str]
"""What was left out: the image, where it was named, and the reason."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the pictures are: folders with subfolders ad and not_ad, or CSV tables.

    Attributes:
        train: All pictures, or those for training where others are given.
        val: Pictures for validation, which are then not drawn from `train`.
        test: Pictures for the test, likewise.
    """

    train: Path
    val: Path | None = None
    test: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Settings of a preparation.

    Attributes:
        image_column: Column of the image paths in tables.
        label_column: Column of the labels.
        text_column: Column of the texts; None: there is none.
        encoding: Of the tables that are read; those that are written are UTF-8.
        ad_labels: Label values that mean an ad, all others do not; None: true, yes, 1 and false, no, 0.
        base_dir: Paths are written relative to this folder, for data.base_dir; None: they are written in full.
        ocr: Find the texts of pictures that have none.
        ocr_lang: Languages of these texts.
        val_fraction: Share for validation.
        test_fraction: Share for the test.
        seed: Names the draw of the split.
        max_megapixels: Larger images are refused.
        skip_unreadable: Leave out rows and images that cannot be used, instead of stopping.
        text_encoder: Say what this text encoder would cut off of the texts: a preset or a model; None: say nothing.
        max_length: Tokens that it reads; None: its own limit.
    """

    image_column: str = "local_image_path"
    label_column: str = "label"
    text_column: str | None = "text_info"
    encoding: str = "utf-8"
    ad_labels: tuple[str, ...] | None = None
    base_dir: Path | None = None
    ocr: bool = False
    ocr_lang: str = "kor+eng"
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    seed: int = 0
    max_megapixels: float = 100.0
    skip_unreadable: bool = False
    text_encoder: str | None = None
    max_length: int | None = None

    @property
    def max_pixels(self) -> int:
        """Most pixels of an image."""
        return int(self.max_megapixels * 1e6)


def prepare_data(
    sources: Sources, output: Path, settings: Preparation, *, left_out: list[LeftOut] | None = None
) -> dict[str, list[AdRow]]:
    """Write train.csv, val.csv and test.csv into `output`; images stay where they are.

    Every part has the same share of ads; copies of a picture go to one part. All tables are written, or none; without
    them nothing stays but the texts that were found, for the next call, and left_out.csv.

    Args:
        sources: Where the pictures are.
        output: Folder.
        settings: What to do.
        left_out: What is left out, and why, is added to it.

    Returns:
        The rows of each split; those without rows have no table.

    Raises:
        UserError: An input cannot be used, a part would be empty, `output` has tables already, or text recognition was
            asked for and is not there.
    """
    for split in _SPLITS:
        if (output / f"{split}.csv").exists():
            raise UserError(f"{output / split}.csv: exists already; give another output folder, or remove it first")
    left_out = [] if left_out is None else left_out
    with output_folder(output):
        splits = _prepared(sources, settings, output, left_out)
        _write(output, {name: _table(rows, settings.base_dir) for name, rows in splits.items() if rows})
        (output / _RECORD).unlink(missing_ok=True)
    return splits


def _prepared(sources: Sources, settings: Preparation, output: Path, left_out: list[LeftOut]) -> dict[str, list[AdRow]]:
    """The rows of each split, with texts."""
    if settings.ocr:
        check_tesseract(settings.ocr_lang)  # before minutes of work
    given = {"train": sources.train, "val": sources.val, "test": sources.test}
    used = {name: path for name, path in given.items() if path is not None}
    parts = {name: read_source(path, settings, left_out=left_out) for name, path in used.items()}
    _keep(left_out, output / _LEFT_OUT)
    for name, path in used.items():
        if not parts[name]:
            reasons = output / _LEFT_OUT
            raise UserError(f"{path}: none of its rows can be used, {reasons} has the reasons; one: {left_out[-1][-1]}")
    if settings.ocr:
        parts = {name: _with_texts(rows, settings, record=output / _RECORD) for name, rows in parts.items()}
    return _split(parts, settings)


def _keep(left_out: Sequence[LeftOut], path: Path) -> None:
    """Write what was left out, if anything; a list from before goes in any case."""
    path.unlink(missing_ok=True)
    if left_out:
        write_text(path, csv_text([("image", "origin", "reason"), *left_out]))


def _write(output: Path, tables: Mapping[str, str]) -> None:
    """All tables or none; a call that is killed meanwhile leaves no `train.csv`, which is written last."""
    written: list[Path] = []
    try:
        for name in reversed(_SPLITS):
            if name in tables:
                write_text(output / f"{name}.csv", tables[name])
                written.append(output / f"{name}.csv")
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def read_source(source: Path, settings: Preparation, *, left_out: list[LeftOut]) -> list[AdRow]:
    """The rows of a folder, sorted by path, or of a table, in its order.

    Args:
        source: Folder or table.
        settings: With `skip_unreadable`, rows that cannot be used are added to `left_out`.
        left_out: See `settings`.

    Raises:
        UserError: There are none, or some cannot be used; it names them.
    """
    if source.is_dir():
        return _folder_rows(source, settings, left_out)
    return _table_rows(source, settings, left_out)


def _folder_rows(folder: Path, settings: Preparation, left_out: list[LeftOut]) -> list[AdRow]:
    found = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    rows: list[AdRow] = []
    for name, label in _FOLDERS.items():
        images = find_images(found[name]) if name in found else []
        if not images:
            raise UserError(f"{folder / name}: no images; expected pictures in the folders {' and '.join(_FOLDERS)}")
        rows += [AdRow(path.resolve(), label, "", str(path)) for path in images]
    problems: list[Problem] = []
    kept = _readable([(place, row.origin, row) for place, row in enumerate(rows)], settings, problems)
    for _, name, problem in problems:
        _leave_out(left_out, name, name, problem)
    return kept


def _table_rows(path: Path, settings: Preparation, left_out: list[LeftOut]) -> list[AdRow]:
    text = settings.text_column
    columns = [settings.image_column, settings.label_column, *([] if text is None else [text])]
    places = Places(path, None)
    found_rows: list[tuple[int, str, AdRow]] = []
    problems: list[Problem] = []
    labels: set[str] = set()
    broken: dict[int, str] | None = {} if settings.skip_unreadable else None
    for line, record in read_records(path, columns, broken=broken, encoding=settings.encoding):
        name, found = record.get(settings.image_column, ""), list[str]()
        if broken and line in broken:
            problems.append((line, name, broken[line]))
            continue
        image = find_image(places, name, line=line, problems=found)
        label = _label(record[settings.label_column], settings, found)
        if label is not None and image is not None:
            labels.add(record[settings.label_column].lower())
            content = "" if text is None else clean_text(record[text])
            found_rows.append((line, name, AdRow(image, label, content, f"{path}, line {line}")))
        problems += [(line, name, "; ".join(found))] if found else []
    if problems and not settings.skip_unreadable:
        raise failed(path, [f"line {line}: {problem}" for line, _, problem in problems])
    if not found_rows and not problems:
        raise UserError(f"{path}: no rows below the header")
    rows = _readable(found_rows, settings, problems)
    for line, name, problem in sorted(problems):
        _leave_out(left_out, name, f"{path}, line {line}", problem)
    if found_rows:
        _check_labels(path, settings, labels)
    return rows


def _label(text: str, settings: Preparation, problems: list[str]) -> int | None:
    value = text.lower()
    wanted = settings.ad_labels
    label = LABELS.get(value) if wanted is None else int(value in {known.lower() for known in wanted})
    if label is None or not value:
        problems.append(f"label is '{value}'; expected {', '.join(LABELS)}, or name the labels of ads with --ad_labels")
        return None
    return label


def _check_labels(path: Path, settings: Preparation, labels: set[str]) -> None:
    wanted = {label.lower() for label in settings.ad_labels or ()}
    if not wanted <= labels:
        absent, known = ", ".join(sorted(wanted - labels)), ", ".join(sorted(labels)[:20])
        raise UserError(f"{path}: no row has the label {absent} (--ad_labels); labels are {known}")


def _leave_out(left_out: list[LeftOut], image: str, origin: str, reason: str) -> None:
    _log.warning("left out: %s: %s", origin, reason)
    left_out.append((image, origin, reason))


def _readable(rows: Sequence[tuple[int, str, AdRow]], settings: Preparation, problems: list[Problem]) -> list[AdRow]:
    """The rows (given with their places and names) whose images can be read; all where none is to be left out."""
    if not settings.skip_unreadable:
        return [row for _, _, row in rows]
    kept = []
    for place, name, row in with_progress(rows, total=len(rows), what="pictures read"):
        try:
            read_image(row.image, max_pixels=settings.max_pixels)
        except UserError as error:
            problems.append((place, name, str(error)))
        else:
            kept.append(row)
    return kept


def _with_texts(rows: Sequence[AdRow], settings: Preparation, *, record: Path) -> list[AdRow]:
    """The rows, with texts found where they had none."""
    empty = [index for index, row in enumerate(rows) if not row.text]
    _log.info("%d of %d pictures have no text; looking for it", len(empty), len(rows))
    chosen = [rows[index] for index in empty]
    texts = recognise(chosen, languages=settings.ocr_lang, max_pixels=settings.max_pixels, record=record)
    filled = list(rows)
    for index, text in zip(empty, texts, strict=True):
        filled[index] = replace(rows[index], text=text)
    return filled


def _split(parts: dict[str, list[AdRow]], settings: Preparation) -> dict[str, list[AdRow]]:
    """What was given for a part stays; other parts are drawn from the training rows."""
    val_fraction = 0.0 if "val" in parts else settings.val_fraction
    test_fraction = 0.0 if "test" in parts else settings.test_fraction
    if val_fraction == 0 and test_fraction == 0:
        return {name: parts.get(name, []) for name in _SPLITS}
    rows = parts["train"]
    groups = picture_groups(rows, max_pixels=settings.max_pixels)
    drawn = stratified_split(
        rows, val_fraction=val_fraction, test_fraction=test_fraction, seed=settings.seed, groups=groups
    )
    return {
        name: parts[name] if name != "train" and name in parts else part
        for name, part in zip(_SPLITS, drawn, strict=True)
    }


def _table(rows: Sequence[AdRow], base_dir: Path | None) -> str:
    lines: list[Sequence[object]] = [COLUMNS]
    base = None if base_dir is None else base_dir.resolve()
    for row in rows:
        if base is not None and not row.image.is_relative_to(base):
            raise UserError(f"{row.origin}: {row.image} is outside of --base_dir {base}")
        place = row.image if base is None else row.image.relative_to(base)
        lines.append([str(place), bool(row.label), row.text])
    return csv_text(lines, exact=True)


def _report(output: Path, splits: dict[str, list[AdRow]], settings: Preparation, encoder: AnyTextEncoder | None) -> str:
    lines = [f"{'split':<8}{'pictures':>10}{'ads':>8}{'without text':>14}"]
    choices = [] if settings.base_dir is None else [f"data.base_dir={settings.base_dir}"]
    for name, rows in splits.items():
        if rows:
            ads, without = sum(row.label for row in rows), sum(not row.text for row in rows)
            lines.append(f"{name:<8}{len(rows):>10}{ads:>8}{without:>14}")
            choices.append(f"data.{name}_csv={output}/{name}.csv")
    if not settings.ocr and any(not row.text for rows in splits.values() for row in rows):
        lines.append("texts of pictures without one can be found with --ocr")
    if encoder is not None:
        texts = {name: [row.text for row in rows] for name, rows in splits.items() if rows}
        lines += [f"{name}: {truncation(encoder.count_tokens(some), encoder)}" for name, some in texts.items()]
    lines.append(f"train with: python apps/multimodal_ads/train.py {' '.join(choices)}")
    return "\n".join(lines)


def _encoder(settings: Preparation) -> AnyTextEncoder | None:
    """The text encoder of `text_encoder`, by its preset or its model."""
    name = settings.text_encoder
    if name is None:
        return None
    config = TextEncoderConfig(model=name)
    if name in group_choices(APP.config_dir)["text_encoder"]:
        request = Request(overrides=[("text_encoder", name)])
        config = compose(AdsConfig, APP.config_dir, request, environ={}).config.text_encoder
    return load_text(config.model_copy(update={"max_length": settings.max_length}))


def run(sources: Sources, output: Path, settings: Preparation) -> int:
    """`prepare.py`: prepare with progress on the terminal; returns exit code 0."""
    setup_logging()
    encoder = _encoder(settings)  # before minutes of work
    left_out: list[LeftOut] = []
    splits = prepare_data(sources, output, settings, left_out=left_out)
    print(_report(output, splits, settings, encoder))
    if left_out:
        print(f"left out: {len(left_out)}; {output / _LEFT_OUT} has the reasons")
    return 0
