"""Equal pictures in tables are named by their rows, stay together in a split, and are looked at once for all runs."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.app import APP
from quartet.apps.multimodal_ads.build import load_splits
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.duplicates import check_duplicates, picture_groups
from quartet.apps.multimodal_ads.data.generated import write_generated
from quartet.apps.multimodal_ads.data.generated_pictures import draw_picture
from quartet.apps.multimodal_ads.data.split import stratified_split
from quartet.apps.multimodal_ads.data.table import AdRow

LIMIT = 10**8


def drawn(number: int) -> Image.Image:
    return draw_picture(np.random.default_rng(number), priced=bool(number % 2))


def save(path: Path, image: Image.Image, *, label: int = 0, **options: Any) -> AdRow:
    image.save(path, **options)
    return AdRow(path, label, "", f"{path.parent.name}.csv, line {path.stem}")


def test_different_drawings_are_different(tmp_path: Path) -> None:
    rows = [save(tmp_path / f"{n}.jpg", drawn(n)) for n in range(150)]
    assert len(set(picture_groups(rows, max_pixels=LIMIT))) == 150


def test_across_splits_is_an_error_and_may_be_allowed(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    train = [save(tmp_path / f"train/{n}.png", drawn(n), label=n % 2) for n in range(6)]
    val = [save(tmp_path / f"val/{n}.png", drawn(n + 20)) for n in range(4)]
    assert check_duplicates({"train": train, "val": val}, allow=False, max_pixels=LIMIT) == []
    val.append(save(tmp_path / "val/9.jpg", drawn(3), label=0, quality=60))
    with pytest.raises(UserError) as caught:
        check_duplicates({"train": train, "val": val}, allow=False, max_pixels=LIMIT)
    message = str(caught.value)
    assert message.startswith("pictures in more than one of train, val, perhaps scaled or compressed anew: 1\n")
    assert "train.csv, line 3 (3.png) = val.csv, line 9 (9.jpg)" in message
    assert "data.allow_duplicates=true" in message
    notes = check_duplicates({"train": train, "val": val}, allow=True, max_pixels=LIMIT)
    assert len(notes) == 2
    assert "different labels" in notes[1]


def test_groups_for_the_split(tmp_path: Path) -> None:
    rows = [save(tmp_path / f"{n}.jpg", drawn(n // 2), label=n // 2 % 2, quality=50 + 40 * (n % 2)) for n in range(40)]
    groups = picture_groups(rows, max_pixels=LIMIT)
    parts = stratified_split(rows, val_fraction=0.3, test_fraction=0.2, seed=0, groups=groups)
    splits = dict(zip(("train", "val", "test"), parts, strict=True))
    assert check_duplicates(splits, allow=False, max_pixels=LIMIT) == []


def test_images_that_cannot_be_read_are_named_together(tmp_path: Path) -> None:
    rows = [save(tmp_path / f"{n}.png", drawn(n)) for n in range(4)]
    rows[1].image.write_bytes(b"")
    rows[3].image.write_bytes(b"no picture")
    with pytest.raises(UserError) as caught:
        picture_groups(rows, max_pixels=LIMIT)
    first, *lines = str(caught.value).splitlines()
    assert first == "2 of 4 images cannot be used:"
    assert "line 1: " in lines[0]
    assert "empty file" in lines[0]
    assert "not an image" in lines[1]


def overwrite(image: Path) -> None:
    """Replace the content by what is no picture, so that it looks unchanged from outside."""
    state = image.stat()
    image.write_bytes(bytes(state.st_size))
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("tables", ["one", "three"])
def test_a_run_looks_at_new_pictures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_generated(tmp_path / "set", train=24, validation=8, test=8, seed=1)
    if tables == "one":
        (tmp_path / "set" / "val.csv").unlink()
        (tmp_path / "set" / "test.csv").unlink()
    data = {"base_dir": tmp_path / "set"}
    splits = load_splits(AdsConfig.model_validate({"data": data}))
    assert len(list(Path("outputs/multimodal_ads/features/fingerprints").iterdir())) == 1
    overwrite(splits.train[3].image)
    assert load_splits(AdsConfig.model_validate({"data": data})) == splits
    with pytest.raises(UserError, match="not an image"):  # other folders do not know them
        load_splits(AdsConfig.model_validate({"data": data, "features": {"cache_dir": tmp_path / "elsewhere"}}))


@pytest.mark.parametrize("dry_run", [False, True])
def test_nothing_is_kept_without_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    monkeypatch.chdir(tmp_path)
    write_generated(tmp_path / "set", train=24, validation=8, test=8, seed=1)
    features = {"cache": "auto" if dry_run else "off"}
    config = AdsConfig.model_validate({"data": {"base_dir": tmp_path / "set"}, "features": features})
    load_splits(APP.dry_run_config(config) if dry_run else config)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_split_follows_its_own_seed_and_keeps_copies_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["local_image_path,label,text_info"]
    for number in range(12):
        save(tmp_path / f"{number}.png", drawn(number))
        save(tmp_path / f"copy{number}.jpg", drawn(number), quality=70)
        rows += [f"{number}.png,{number % 2},", f"copy{number}.jpg,{number % 2},"]
    (tmp_path / "train.csv").write_text("\n".join(rows), encoding="utf-8")

    def split(seed: int, split_seed: int) -> dict[str, list[str]]:
        data = {"base_dir": tmp_path, "split_seed": split_seed, "val_fraction": 0.3, "test_fraction": 0.3}
        found = load_splits(AdsConfig.model_validate({"data": data, "run": {"seed": seed}})).named()
        return {name: sorted(row.image.stem.removeprefix("copy") for row in part) for name, part in found.items()}

    first = split(0, 0)
    assert split(1, 0) == first != split(0, 1)
    for numbers in first.values():
        assert numbers[::2] == numbers[1::2]


def test_copies_in_two_tables_are_in_one_fold_of_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training and validation data are dealt anew, they may share pictures; with the test data they may not."""
    monkeypatch.chdir(tmp_path)
    tables = {name: ["local_image_path,label,text_info"] for name in ("train", "val", "test")}
    for number in range(12):
        save(tmp_path / f"{number}.png", drawn(number))
        save(tmp_path / f"copy{number}.jpg", drawn(number), quality=70)
        tables["train"].append(f"{number}.png,{number % 2},")
        tables["val"].append(f"copy{number}.jpg,{number % 2},")
    for number in (98, 99):
        save(tmp_path / f"{number}.png", drawn(number))
        tables["test"].append(f"{number}.png,{number % 2},")
    for name, rows in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(rows), encoding="utf-8")

    def member(fold: int | None) -> dict[str, list[str]]:
        protocol = {"folds": 3, "inner": 2, "fold": fold}
        config = AdsConfig.model_validate({"data": {"base_dir": tmp_path}, "protocol": protocol})
        found = load_splits(config).named()
        return {name: [row.image.stem.removeprefix("copy") for row in part] for name, part in found.items()}

    with pytest.raises(UserError, match="pictures in more than one of"):
        member(None)
    held_out = []
    for fold in (1, 2, 3):
        parts = member(fold)
        assert set(parts) == {"train", "val", "test"}
        assert sum(len(set(part)) for part in parts.values()) == 12, "no picture is in two parts"
        held_out += parts["test"]
    assert sorted(held_out) == sorted([*map(str, range(12))] * 2)
    assert {name: len(part) for name, part in member(0).items()} == {"train": 24, "test": 2}
