"""Every lesion is in the crops of every epoch, whatever its size; crops depend on seed, epoch and sample only."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.seeding import numpy_rng
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from quartet.apps.sam_med3d_ich.data.cache import Cache
from quartet.apps.sam_med3d_ich.data.case import Case
from quartet.apps.sam_med3d_ich.data.dataset import CaseDataset, CropDataset, CropTransform, missed_components
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing
from quartet.apps.sam_med3d_ich.data.volume import write_nifti

COARSE = Preprocessing(spacing=(1.5, 1.5, 1.5))
STORED = Preprocessing(spacing=None, normalize="none", window=None)


def make_case(folder: Path, name: str, mask: NDArray[np.uint8], spacing: tuple[float, float, float]) -> Case:
    affine = np.diag([*spacing, 1.0])
    array = np.random.default_rng(0).normal(30, 30, size=mask.shape).astype(np.float32)
    write_nifti(folder / f"{name}.nii", array, like_affine=affine)
    ich = bool(mask.any())
    if ich:
        write_nifti(folder / f"{name}_mask.nii", mask, like_affine=affine)
    return Case(
        name=name,
        image=folder / f"{name}.nii",
        mask=folder / f"{name}_mask.nii" if ich else None,
        ich=int(ich),
        patient_id=name,
        origin="train.csv, line 2",
    )


def loader(dataset: CropDataset, transform: CropTransform, *, workers: int = 0, batch_size: int = 2) -> BatchLoader:
    order = EpochOrder(size=len(dataset), batch_size=batch_size, seed=7)
    return BatchLoader(dataset, order, transform=transform, num_workers=workers)


def batches(loader: BatchLoader, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
    for micro_batch in loader.epoch(epoch):
        yield micro_batch.data


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> CropDataset:
    """A head of 512 x 512 x 30 voxels with one bleed of 30 voxels, 0.03 mL."""
    folder = tmp_path_factory.mktemp("head")
    mask = np.zeros((512, 512, 30), dtype=np.uint8)
    mask[301:306, 170:173, 21:23] = 1
    assert mask.sum() == 30
    case = make_case(folder, "1", mask, (0.45, 0.45, 5.0))
    return CropDataset([case], cache=Cache(folder / "cache", COARSE), crop_size=64, random_crops=3)


@pytest.mark.parametrize("augmentation_prob", [0.0, 0.5])
def test_a_bleed_of_30_voxels_is_in_the_crops_of_every_epoch(head: CropDataset, augmentation_prob: float) -> None:
    transform = CropTransform(crop_size=64, augmentation_prob=augmentation_prob, n_draws=3, trace=True)
    whole = int(head[0]["case"].mask.sum())
    assert whole > 0
    alone, shared = (loader(head, transform, workers=workers) for workers in (0, 2))
    seen = []
    for epoch in range(5):
        crops = list(batches(alone, epoch))
        assert missed_components(head, crops) == set()
        marked = torch.cat([crop["mask"] for crop in crops]).sum(dim=(1, 2, 3, 4))
        assert augmentation_prob > 0 or whole in marked.tolist()
        np.testing.assert_array_equal(torch.cat([crop["label"] for crop in crops]), (marked > 0).float())
        for mine, theirs in zip(crops, batches(shared, epoch), strict=True):
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                assert torch.equal(value, theirs[name]), name
        seen.append(crops[0]["image"])
    assert not any(torch.equal(seen[0], later) for later in seen[1:])  # every epoch has its own crops


@pytest.mark.parametrize("settings", [COARSE, STORED, Preprocessing(spacing=(4.0, 4.0, 4.0))])
def test_a_bleed_of_one_voxel_is_in_the_crops_of_every_epoch(tmp_path: Path, settings: Preprocessing) -> None:
    cases = []
    for number, voxel in enumerate([(0, 0, 0), (39, 36, 11), (17, 20, 5)]):
        mask = np.zeros((40, 37, 12), dtype=np.uint8)
        mask[voxel] = 1
        cases.append(make_case(tmp_path, str(number), mask, (0.45, 0.45, 5.0)))
    dataset = CropDataset(cases, cache=Cache(tmp_path / "cache", settings), crop_size=16, random_crops=0)
    assert len(dataset) == 3
    epochs = loader(dataset, CropTransform(crop_size=16, augmentation_prob=0.8, trace=True))
    for epoch in range(5):
        crops = list(batches(epochs, epoch))
        assert missed_components(dataset, crops) == set()
        assert all(crop["label"].all() for crop in crops)


def test_many_lesions_share_crops_and_none_is_missed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((40, 40, 40)) > 0.9995).astype(np.uint8)
    mask[5:30, 8:10, 20] = 1  # longer than a crop
    cases = [make_case(tmp_path, "1", mask, (1.0, 1.0, 1.0)), make_case(tmp_path, "2", mask * 0, (1.0, 1.0, 1.0))]
    dataset = CropDataset(cases, cache=Cache(tmp_path / "cache", STORED), crop_size=16, random_crops=2)
    assert dataset.components[1] == 0
    assert dataset.components[0] > 10
    assert 4 + 2 < len(dataset) < dataset.components[0]
    epochs = loader(dataset, CropTransform(crop_size=16, trace=True), batch_size=4)
    for epoch in range(3):
        crops = list(batches(epochs, epoch))
        assert missed_components(dataset, crops) == set()
        of_second = torch.cat([crop["label"] for crop in crops])[torch.cat([crop["index"] for crop in crops]) == 1]
        assert of_second.tolist() == [0.0, 0.0]


def test_missing_lesions_are_found_out(head: CropDataset) -> None:
    transform = CropTransform(crop_size=64, trace=True)
    crops = [crop for crop in batches(loader(head, transform, batch_size=1), 0) if not crop["label"].any()]
    assert missed_components(head, crops) == {(0, 1)}


def test_a_lesion_larger_than_the_crop_is_seen_all_over(tmp_path: Path) -> None:
    """Each crop is centred on a random voxel of that very lesion, not of another one in the same box."""
    mask = np.zeros((60, 40, 20), dtype=np.uint8)
    mask[2:58, 3, 5] = mask[2, 3:38, 5] = 1  # an L around the other
    mask[40:50, 20:30, 5] = 1
    case = make_case(tmp_path, "1", mask, (1.0, 1.0, 1.0))
    dataset = CropDataset([case], cache=Cache(tmp_path / "cache", STORED), crop_size=8, random_crops=0)
    transform = CropTransform(crop_size=8)
    item = next(item for item in map(dataset.__getitem__, range(2)) if item["target"].components == (1,))
    image = np.array(item["case"].image)
    shown = np.zeros(mask.shape, dtype=bool)
    for seed in range(300):
        corner = transform(item, numpy_rng(seed))["image"][0, 0, 0, 0].item()
        start = np.argwhere(image == np.float32(corner))[0]  # noise: each value is there once
        inside = tuple(slice(s, s + 8) for s in start)
        assert (item["case"].components[inside] == 1).any()
        shown[inside] = True
    assert shown[item["case"].components == 1].all()


def test_samples_have_the_stated_shapes_and_types(head: CropDataset) -> None:
    sample = CropTransform(crop_size=64, augmentation_prob=1.0, n_draws=5)(head[0], numpy_rng(1))
    assert sample.keys() == {"image", "mask", "label", "draws"}
    assert (sample["image"].dtype, sample["image"].shape) == (torch.float32, (1, 64, 64, 64))
    assert (sample["mask"].dtype, sample["mask"].shape) == (torch.uint8, (1, 64, 64, 64))
    assert (sample["label"].dtype, sample["label"].shape) == (torch.float32, ())
    assert (sample["draws"].dtype, sample["draws"].shape) == (torch.float32, (5,))
    assert 0 <= sample["draws"].min() < sample["draws"].max() < 1
    assert CropTransform(crop_size=64)(head[0], numpy_rng(1)).keys() == {"image", "mask", "label"}


def test_narrow_volumes_are_padded_with_their_background(tmp_path: Path) -> None:
    mask = np.zeros((10, 20, 7), dtype=np.uint8)
    mask[9, 19, 6] = 1
    dataset = CropDataset(
        [make_case(tmp_path, "1", mask, (1.5, 1.5, 1.5))],
        cache=Cache(tmp_path / "cache", COARSE),
        crop_size=16,
        random_crops=1,
    )
    case = dataset[0]["case"]
    for index in range(2):
        sample = CropTransform(crop_size=16)(dataset[index], numpy_rng(3))
        image = sample["image"][0].numpy()
        assert (image[:3] == np.float32(case.background)).all()
        assert (image[13:] == np.float32(case.background)).all()
        assert (image[..., :4] == np.float32(case.background)).all()
        held = image[3:13, :, 4:11]
        assert any(np.array_equal(held, case.image[:, low : low + 16]) for low in range(5))


def test_crops_anywhere_reach_the_whole_volume(tmp_path: Path) -> None:
    mask = np.zeros((20, 20, 20), dtype=np.uint8)
    case = make_case(tmp_path, "1", mask, (1.0, 1.0, 1.0))
    dataset = CropDataset([case], cache=Cache(tmp_path / "cache", STORED), crop_size=16, random_crops=1)
    item = dataset[0]
    image = np.array(item["case"].image)
    places = {start: image[tuple(slice(s, s + 16) for s in start)][0, 0, 0] for start in np.ndindex(5, 5, 5)}
    first = {float(CropTransform(crop_size=16)(item, numpy_rng(seed))["image"][0, 0, 0, 0]) for seed in range(1500)}
    assert first == {float(value) for value in places.values()}


def test_a_dataset_is_cheap_to_send_to_workers(head: CropDataset) -> None:
    data = pickle.dumps(head)
    assert len(data) < 5000
    again = pickle.loads(data)
    assert torch.equal(
        CropTransform(crop_size=64)(again[0], numpy_rng(1))["image"],
        CropTransform(crop_size=64)(head[0], numpy_rng(1))["image"],
    )


def test_reading_crops_keeps_no_files_open(head: CropDataset) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list open files")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        CropTransform(crop_size=64)(head[0], numpy_rng(1))
    assert len(list(descriptors.iterdir())) <= before


def test_no_crops_is_an_error(tmp_path: Path) -> None:
    case = make_case(tmp_path, "1", np.zeros((8, 8, 8), dtype=np.uint8), (1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="random_crops"):
        CropDataset([case], cache=Cache(tmp_path / "cache", STORED), crop_size=16, random_crops=0)


def test_whole_cases(tmp_path: Path) -> None:
    mask = np.zeros((8, 9, 10), dtype=np.uint8)
    mask[1, 2, 3] = 1
    cases = [make_case(tmp_path, "a", mask, (1.0, 2.0, 3.0)), make_case(tmp_path, "b", mask * 0, (1.0, 2.0, 3.0))]
    dataset = CaseDataset(cases)
    assert len(dataset) == 2
    first, second = dataset[0], dataset[1]
    assert (first["name"], first["ich"], first["index"]) == ("a", 1, 0)
    assert (second["name"], second["ich"], second["index"]) == ("b", 0, 1)
    np.testing.assert_array_equal(first["mask"], mask)
    assert first["volume"].spacing == (1.0, 2.0, 3.0)
    assert second["mask"].shape == (8, 9, 10)
    assert not second["mask"].any()
