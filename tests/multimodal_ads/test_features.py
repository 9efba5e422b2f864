"""The store of frozen features: what it finds again, what it never confuses, what survives a kill."""

import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mlcore.base.distributed import World, barrier, start_world
from mlcore.base.errors import UserError
from mlcore.config.sections import RunConfig
from quartet.apps.multimodal_ads.config import (
    AdsConfig,
    AdsTrainConfig,
    FeaturesConfig,
    PoolingConfig,
    VisionEncoderConfig,
)
from quartet.apps.multimodal_ads.data.table import AdRow
from quartet.apps.multimodal_ads.features import FeatureStore, text_digest, weights_digest
from quartet.apps.multimodal_ads.frozen import _fill, picture_features, text_features
from quartet.apps.multimodal_ads.model.build import make_parts

TEXTS = ["sale", "news", "sale", "세일", ""]
DIGESTS = [text_digest(text) for text in TEXTS]


class Counting:
    """A stand-in for an encoder that notes what it is asked for."""

    def __init__(self, batch_size: int = 2) -> None:
        self.asked: list[int] = []
        self.batch_size = batch_size

    def __call__(self, positions: Sequence[int]) -> Iterator[Mapping[str, Tensor]]:
        for start in range(0, len(positions), self.batch_size):
            yield self.encode(positions[start : start + self.batch_size])

    def encode(self, positions: Sequence[int]) -> Mapping[str, Tensor]:
        self.asked += positions
        lengths = torch.tensor([float(len(TEXTS[i])) for i in positions])
        return {"values": lengths[:, None] * torch.ones(1, 3), "mask": torch.ones(len(positions), 2, dtype=torch.bool)}


def filled(folder: Path, recipe: Mapping[str, object], compute: Counting) -> FeatureStore:
    store = FeatureStore(folder, recipe)
    store.fill(DIGESTS, store.missing(DIGESTS), compute, label="texts", batch_size=compute.batch_size)
    return store


def test_each_content_is_computed_once_and_found_again_by_another_process(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    filled(tmp_path, {"weights": "a"}, first)
    store = filled(tmp_path, {"weights": "a"}, second)
    assert sorted(first.asked) == [0, 1, 3, 4]  # 2 is 0 again
    assert second.asked == []
    for text, digest in zip(TEXTS, DIGESTS, strict=True):
        row = store[digest]
        assert np.array_equal(row["values"], np.full(3, len(text), np.float32))
        assert row["mask"].dtype == bool


def test_another_recipe_knows_nothing_of_it(tmp_path: Path) -> None:
    filled(tmp_path, {"weights": "a", "size": 224}, Counting())
    for recipe in ({"weights": "b", "size": 224}, {"weights": "a", "size": 225}):
        assert FeatureStore(tmp_path, recipe).missing(DIGESTS) == [0, 1, 3, 4]


def test_every_weight_and_buffer_is_in_the_digest() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = weights_digest(model)
    assert weights_digest(model) == before
    seen = {before}
    for tensor in model.state_dict().values():
        tensor.flatten()[-1:].add_(1)
        seen.add(weights_digest(model))
    assert len(seen) == 1 + len(model.state_dict())


class Ahead(FeatureStore):
    """One rank's view of a store that another job fills at the same time: with every look there is a row more."""

    def missing(self, digests: Sequence[str]) -> list[int]:
        other = FeatureStore(self.folder.parent, {})
        other.fill(digests, other.missing(digests)[:1], Counting(), label="texts", batch_size=2)
        self.refresh()
        return super().missing(digests)


def _rank(rank: int, port: str, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    with start_world("cpu") as world:
        for name, kind in (("alone", FeatureStore), ("not-alone", Ahead if rank else FeatureStore)):
            store, compute = kind(folder / name, {}), Counting()
            barrier()
            _fill(store, {"train": DIGESTS}, compute, label="texts", batch_size=2, world=world)
            assert [len(store[digest]["values"]) for digest in DIGESTS] == [3] * len(DIGESTS)
            (folder / f"{name}-{rank}").write_text(" ".join(map(str, compute.asked)))


def test_ranks_share_the_work_and_see_all_of_it(tmp_path: Path, free_port: int) -> None:
    mp.spawn(_rank, args=(str(free_port), tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    assert [(tmp_path / f"alone-{rank}").read_text("utf-8") for rank in range(2)] == ["0 3", "1 4"]


def test_ranks_without_a_common_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "quartet.apps.multimodal_ads.frozen.any_rank", lambda _own: True
    )  # the other one never sees the rows
    monkeypatch.setattr("quartet.apps.multimodal_ads.frozen.time.sleep", lambda _seconds: None)
    with pytest.raises(UserError, match=r"another does not see; give a --cache_dir"):
        _fill(FeatureStore(tmp_path, {}), {"train": DIGESTS}, Counting(), label="texts", batch_size=2, world=World())


def test_a_killed_fill_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quartet.apps.multimodal_ads.features._PART_BYTES", 1)  # every batch is a part

    class Killed(Counting):
        def encode(self, positions: Sequence[int]) -> Mapping[str, Tensor]:
            if self.asked:
                raise KeyboardInterrupt
            return super().encode(positions)

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, {}, Killed())
    rest = Counting()
    filled(tmp_path, {}, rest)
    assert rest.asked == [3, 4]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:90], lambda data: data[:-1], lambda _data: b"", lambda data: bytes(len(data))],
    ids=["half a header", "a byte short", "empty", "zeros"],
)
@pytest.mark.parametrize("name", ["values", "keys"])
def test_a_damaged_part_is_computed_again(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    store = filled(tmp_path, {}, Counting())
    file = next(store.folder.glob("part-*")) / f"{name}.npy"
    file.write_bytes(damage(file.read_bytes()))
    again = Counting(batch_size=4)
    assert len(filled(tmp_path, {}, again)[DIGESTS[0]]["values"]) == 3
    assert sorted(again.asked) == [0, 1, 3, 4]
    assert len(list(store.folder.iterdir())) == 2  # the recipe and the new part


def test_a_part_that_cannot_be_opened_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, {}, Counting())
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", lambda *_, **__: open(os.devnull + "/no", encoding="utf-8"))  # noqa: PTH123, SIM115 - NotADirectoryError
        with pytest.raises(UserError, match=r"part-.*cannot be read .*ulimit -n"):
            FeatureStore(tmp_path, {})
    assert not FeatureStore(tmp_path, {}).missing(DIGESTS)


def test_there_may_be_more_parts_than_files_may_be_open_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quartet.apps.multimodal_ads.features._PART_BYTES", 1)
    filled(tmp_path, {}, Counting(batch_size=1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 4, limits[1]))  # noqa: PTH208
    try:
        store = FeatureStore(tmp_path, {})
        assert len(store[DIGESTS[4]]["values"]) == 3  # four parts of two mapped files
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_leftovers_that_go_away_meanwhile_are_no_problem(tmp_path: Path) -> None:
    folder = FeatureStore(tmp_path, {}).folder
    (folder / ".part-0.tmp").symlink_to(folder / "gone")
    assert FeatureStore(tmp_path, {}).missing(DIGESTS) == [0, 1, 3, 4]


def test_a_part_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, {})
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
    store.fill(DIGESTS, [0], Counting(), label="texts", batch_size=2)
    *files, part, folder = synced
    assert {file.name for file in files} == {"keys.npy", "mask.npy", "values.npy"}
    assert {file.parent for file in files} == {part}
    assert part.name.endswith(".tmp")
    assert not part.exists()
    assert folder == store.folder


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quartet.apps.multimodal_ads.features.free_bytes", lambda _path: 10_000)
    store = FeatureStore(tmp_path, {})
    store.check_room(10, {"values": torch.zeros(1, 50, dtype=torch.bfloat16)})  # stored as 200 bytes
    with pytest.raises(UserError, match=r"need .* are\s*free; give --cache_dir"):
        store.check_room(100, {"values": torch.zeros(1, 50, dtype=torch.bfloat16, requires_grad=True)})


def test_bfloat16_keeps_its_values(tmp_path: Path) -> None:
    values = torch.randn(len(TEXTS), 4).bfloat16()
    store = FeatureStore(tmp_path, {})
    store.fill(DIGESTS, [0, 1], lambda positions: [{"values": values[positions]}], label="texts", batch_size=8)
    assert np.array_equal(store[DIGESTS[1]]["values"], values[1].float().numpy())


class Lengths:
    """A stand-in for a text encoder."""

    width = 1

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fingerprint(self) -> str:
        return "lengths"

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[float(len(text))] for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([len(text) for text in texts])


def test_texts_belong_to_the_precision_they_were_computed_in(tmp_path: Path) -> None:
    rows = [AdRow(image=tmp_path / "none.png", label=0, text=text, origin="") for text in TEXTS]
    encoder: Any = Lengths()
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            store, digests = text_features(
                {"train": rows}, encoder, settings=FeaturesConfig(), root=tmp_path, world=World()
            )["train"]
            assert [store[digest]["embedding"].item() for digest in digests] == [len(text) for text in TEXTS]
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(encoder.asked) == 2 * 4


@pytest.fixture
def pictured(tmp_path: Path) -> list[AdRow]:
    """Nine different pictures in files."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(9):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (30 + number, 50, 3), dtype=np.uint8)).save(path)
        rows.append(AdRow(image=path, label=0, text="", origin=""))
    return rows


def pooled(rows: Sequence[AdRow], model: Path, root: Path, *, num_workers: int) -> list[NDArray[np.float32]]:
    config = AdsConfig(
        vision_encoder=VisionEncoderConfig(kind="siglip2", model=str(model)),
        features=FeaturesConfig(encode_batch_size=2),
        pooling=PoolingConfig(name="mean"),
        train=AdsTrainConfig(modality="vision_only"),
        run=RunConfig(num_workers=num_workers),
    )
    parts = make_parts(config, device=torch.device("cpu"))
    store, digests = picture_features({"train": rows}, parts, config=config, root=root, world=World())["train"]
    return [store[digest]["pooled"] for digest in digests]


def test_workers_change_nothing(pictured: list[AdRow], hub_folder: Any, tmp_path: Path) -> None:
    model = hub_folder("siglip2")
    alone = pooled(pictured, model, tmp_path / "alone", num_workers=0)
    together = pooled(pictured, model, tmp_path / "together", num_workers=2)
    assert np.array_equal(alone, together)
    assert len(np.unique(np.stack(alone), axis=0)) == len(pictured)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_picture_is_told_plainly(
    num_workers: int, pictured: list[AdRow], hub_folder: Any, tmp_path: Path
) -> None:
    bad = pictured[5].image
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(UserError) as told:
        pooled(pictured, hub_folder("siglip2"), tmp_path / "features", num_workers=num_workers)
    assert str(told.value).startswith(f"{bad}: ")
    assert "Traceback" not in str(told.value)


def test_weights_are_digested_once_and_random_ones_never(
    pictured: list[AdRow], hub_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested: list[nn.Module] = []

    def digest(module: nn.Module) -> str:
        digested.append(module)
        return "digest"

    monkeypatch.setattr("quartet.apps.multimodal_ads.model.build.weights_digest", digest)
    pooled(pictured, hub_folder("siglip2"), tmp_path, num_workers=0)
    assert len(digested) == 1
    config = AdsConfig(
        vision_encoder=VisionEncoderConfig(kind="timm", model="resnet10t", pretrained=False, image_size=(32, 32)),
        train=AdsTrainConfig(modality="vision_only", freeze_backbone=False, finetune_layers=-1),
    )
    assert make_parts(config, device=torch.device("cpu")).base_digest is None
    assert len(digested) == 1
