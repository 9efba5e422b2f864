"""Folders and archives of images; patches; image augmentation."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.data.mixing import MixedCollate, Mixing
from quartet.apps.perceiver.config import DataConfig
from quartet.apps.perceiver.data import ImageAugmentation, ImagePatches, ImageSource, PatchLayout, image_augmentation
from quartet.apps.perceiver.data.checking import ImageFiles
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.images import decode_image
from quartet.apps.perceiver.data.patches import fourier_positions
from quartet.apps.perceiver.data.rand_augment import OPERATIONS, rand_augment
from quartet.apps.perceiver.data.sources import samples_to_check


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(*size, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    seed = 0
    for split, count in (("train", 3), ("test", 2)):
        for label in ("dog", "cat"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                (root / split / label / f"{number}.png").write_bytes(encoded(picture(seed)))
                seed += 1
    (root / "train" / "dog" / "notes.txt").write_text("not an image")
    return root


def test_folder_and_archive_are_the_same(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "pets.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname="pets")
    for source in (ImageSource(folder), ImageSource(archive)):
        assert source.splits == {"train", "test"}
        data = source.load("train")
        assert data.classes == ("cat", "dog")
        assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
        np.testing.assert_array_equal(data.images[3], np.asarray(picture(0)))
        assert data.origins[3].endswith("train/dog/0.png")
        assert len(source.load("test", classes=data.classes).labels) == 4
        assert len(source.load().labels) == 10


def test_checked_files_have_the_limit_of_a_training(folder: Path) -> None:
    (folder / "train" / "cat" / "large.png").write_bytes(encoded(picture(0, (40, 40))))
    settings = DataConfig(dataset="image_folder", data_dir=folder, image_size=16, max_megapixels=0.001)
    files = samples_to_check(settings, seed=0)["images"]
    found = []
    for index in range(len(files)):
        try:
            files[index]
        except UserError as error:
            found.append(str(error))
    assert len(found) == 1
    assert "large.png: 40 x 40 pixels" in found[0]


def test_splits_and_classes_that_are_not_there(folder: Path) -> None:
    source = ImageSource(folder)
    with pytest.raises(UserError, match="no folder named val with images; splits found: test, train"):
        source.load("val")
    with pytest.raises(UserError, match="classes dog are not among bird, cat"):
        source.load("test", classes=("bird", "cat"))


def test_damaged_images_stop_or_are_counted(folder: Path) -> None:
    bad = folder / "train" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(UserError, match=r"train/dog/1\.png: damaged or not a whole image"):
        ImageSource(folder).load("train")
    data = ImageSource(folder).load("train", on_bad_sample="skip")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert len(data.skipped) == 1
    assert "train/dog/1.png" in data.skipped[0]


def test_sizes_that_differ(folder: Path) -> None:
    (folder / "train" / "dog" / "1.png").write_bytes(encoded(picture(9, (8, 20))))
    with pytest.raises(UserError, match=r"dog/1\.png: 8 x 20 pixels where others have 16 x 16; set image_size"):
        ImageSource(folder).load("train")
    assert ImageSource(folder).load("train", image_size=8).images.shape == (6, 8, 8, 3)


def test_a_first_image_of_another_size_is_the_one_that_is_named(folder: Path) -> None:
    first = min((folder / "train").rglob("*.*"))
    first.write_bytes(encoded(picture(9, (8, 20))))
    with pytest.raises(UserError, match=rf"{first.name}: 8 x 20 pixels where others have 16 x 16; set image_size"):
        ImageSource(folder).load("train")
    assert len(ImageSource(folder).load("train", on_bad_sample="skip").images) == 5
    files = sorted((folder / "train").rglob("*.*"))
    checked = ImageFiles(files, image_size=None, max_pixels=1000)
    with pytest.raises(UserError, match=rf"{first.name}: 8 x 20 pixels where others have 16 x 16; set image_size"):
        checked[files.index(first)]


def test_nothing_usable(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("test/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of 4 images can be used"):
        ImageSource(folder).load("test", on_bad_sample="skip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images found"):
        ImageSource(tmp_path / "empty")
    (tmp_path / "no.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"no\.tar: damaged or not a folder or a tar archive"):
        ImageSource(tmp_path / "no.tar")
    with pytest.raises(UserError, match=r"absent: cannot be read .No such file or directory.$"):
        ImageSource(tmp_path / "absent")


def test_modes_become_rgb() -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    for mode in ("RGB", "P", "CMYK", "RGBA"):
        kind = "TIFF" if mode == "CMYK" else "PNG"
        np.testing.assert_allclose(
            decode_image(encoded(red.convert(mode), kind), origin="x")[0, 0], [255, 0, 0], atol=2
        )
    for mode, value in (("L", 90), ("1", 1)):
        grey = decode_image(encoded(Image.new(mode, (2, 2), value)), origin="x")
        assert grey.shape == (2, 2, 3)
        assert grey[0, 0].tolist() == [90 if mode == "L" else 255] * 3
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert decode_image(encoded(clear), origin="x")[0, 0].tolist() == [255, 255, 255]
    deep = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert decode_image(encoded(deep), origin="x")[0, 0].tolist() == [128, 128, 128]


def test_exif_orientation_is_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter
    assert decode_image(encoded(picture(0, (4, 10)), "JPEG", exif=exif), origin="x").shape == (10, 4, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_truncated_files_are_named(kind: str) -> None:
    content = encoded(picture(0, (64, 64)), kind)
    with pytest.raises(UserError, match=r"photo: damaged or not a whole image"):
        decode_image(content[: len(content) // 2], origin="photo")


def test_patches_are_cut_row_by_row_and_put_together_again() -> None:
    image = np.asarray(picture(0, (16, 24)))
    layout = PatchLayout(height=16, width=24, patch_size=8)
    sequence = layout.sequence(image)
    assert sequence.shape == (6, 192 + 18)
    np.testing.assert_array_equal(sequence[4, :192], (image[8:16, 8:16].astype(np.float32) / 255).ravel())
    np.testing.assert_array_equal(layout.image(sequence), image)


def test_every_patch_knows_its_row_and_column() -> None:
    positions = PatchLayout(height=32, width=24, patch_size=8).positions
    assert len(np.unique(positions.round(4), axis=0)) == 12
    np.testing.assert_allclose(
        positions[:, 0].reshape(4, 3), np.linspace(-1, 1, 4)[:, None].repeat(3, axis=1), atol=1e-6
    )
    np.testing.assert_allclose(positions[:, 9].reshape(4, 3), np.linspace(-1, 1, 3)[None].repeat(4, axis=0), atol=1e-6)


def test_fourier_positions_of_a_line() -> None:
    features = fourier_positions((5,), bands=2)
    np.testing.assert_allclose(features[:, 0], [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(features[3, 1:], [1.0, np.sin(np.pi * 1.25), 0.0, np.cos(np.pi * 1.25)], atol=1e-6)


def test_patches_that_do_not_tile() -> None:
    with pytest.raises(UserError, match="patches of 5 pixels do not tile images of 16 x 16"):
        PatchLayout(height=16, width=16, patch_size=5)


def test_augmentation_is_a_function_of_the_generator(folder: Path) -> None:
    data = ImagePatches(ImageSource(folder).load("train"), patch_size=4)
    transform = image_augmentation(data.layout, strength="strong", randaugment=9)
    assert transform is not None
    before = data[0]["input"].copy()
    first, again, other = (transform(data[0], np.random.default_rng(seed))["input"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(data[0]["input"], before)
    np.testing.assert_array_equal(first[:, data.layout.pixel_channels :], data.layout.positions)
    assert 0 <= first[:, : data.layout.pixel_channels].min() <= first[:, : data.layout.pixel_channels].max() <= 1
    assert image_augmentation(data.layout, strength="none") is None


def test_keys_for_mixing_belong_to_a_picture_in_an_epoch(folder: Path) -> None:
    data = ImagePatches(ImageSource(folder).load("train"), patch_size=4)
    transform = image_augmentation(data.layout, strength="none", keyed=True)
    assert transform is not None
    samples = [transform(data[0], np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert samples[0]["key"] == samples[1]["key"] != samples[2]["key"]
    np.testing.assert_array_equal(samples[0]["input"], data[0]["input"])
    mixed = MixedCollate(PadCollate(), Mixing(2, mixup=1.0, name="input"))([samples[0], samples[2]])
    share = mixed["target"].max(dim=1).values
    assert mixed["target"].sum(dim=1).tolist() == pytest.approx([1, 1])
    assert share.tolist() == [1, 1], "both are of one class"
    np.testing.assert_allclose(mixed["input"][0], data[0]["input"], atol=1e-6)


def test_each_of_randaugments_changes_is_one() -> None:
    image = np.asarray(picture(0))
    for name, change in OPERATIONS.items():
        strong = [np.asarray(change(Image.fromarray(image), strength)) for strength in (-0.8, 0.8)]
        assert all(one.shape == image.shape for one in strong)
        same = [np.array_equal(one, image) for one in strong]
        assert same == [name == "identity"] * 2, name
        if name not in ("auto_contrast", "equalize"):
            np.testing.assert_array_equal(np.asarray(change(Image.fromarray(image), 0.0)), image, name)
    drawn = {rand_augment(image, np.random.default_rng(seed), magnitude=9).tobytes() for seed in range(30)}
    assert len(drawn) > 20
    np.testing.assert_array_equal(
        rand_augment(image, np.random.default_rng(5), magnitude=9),
        rand_augment(image, np.random.default_rng(5), magnitude=9),
    )


def changed(image: np.ndarray, seed: int, **options: object) -> np.ndarray:
    layout = PatchLayout(height=16, width=16, patch_size=8)
    nothing = {"flip": False, "shift": 0, "colour": 0.0, "erase": 0.0}
    transform = ImageAugmentation(layout=layout, **{**nothing, **options})  # type: ignore[arg-type]
    return layout.image(transform({"input": layout.sequence(image), "label": 0}, np.random.default_rng(seed))["input"])


def test_each_change_is_what_it_says() -> None:
    image = np.asarray(picture(0))
    np.testing.assert_array_equal(changed(image, 0), image)
    flips = [changed(image, seed, flip=True) for seed in range(8)]
    assert {np.array_equal(f, image) for f in flips} == {True, False}
    assert all(np.array_equal(f, image) or np.array_equal(f, image[:, ::-1]) for f in flips)
    flat = np.full((16, 16, 3), 100, dtype=np.uint8)
    np.testing.assert_array_equal(changed(flat, 0, shift=5), flat)
    erased = [(changed(flat, seed, erase=0.5) != 100).any(axis=2).sum() for seed in range(8)]
    assert 0 < max(erased) <= 64
    assert len(np.unique(changed(flat, 0, colour=0.4))) == 1  # a grey picture has no contrast or colour to change


def test_cifar_photos(real_data: Path) -> None:
    source = ImageSource(real_data / "cifar10.tar")
    test = source.load("test")
    assert test.images.shape == (2000, 32, 32, 3)
    assert np.bincount(test.labels).tolist() == [200] * 10
    assert ImagePatches(test, patch_size=8)[0]["input"].shape == (16, 210)
