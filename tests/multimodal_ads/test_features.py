"""The store of frozen features: what it finds again, what it never confuses, what survives a kill."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apps.multimodal_ads.features import FeatureStore, text_digest, weights_digest
from mlcore.errors import UserError

TEXTS = ["sale", "news", "sale", "세일", ""]
DIGESTS = [text_digest(text) for text in TEXTS]


class Counting:
    """A stand-in for an encoder that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, positions: list[int]) -> Mapping[str, Tensor]:
        self.asked += positions
        lengths = torch.tensor([float(len(TEXTS[i])) for i in positions])
        return {"values": lengths[:, None] * torch.ones(1, 3), "mask": torch.ones(len(positions), 2, dtype=torch.bool)}


def filled(folder: Path, recipe: Mapping[str, object], compute: Counting) -> FeatureStore:
    store = FeatureStore(folder, recipe)
    store.fill(DIGESTS, compute, label="texts", batch_size=2)
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


def test_ranks_share_the_work_and_see_all_of_it(tmp_path: Path) -> None:
    ranks = [Counting(), Counting()]
    stores = [FeatureStore(tmp_path, {}) for _ in ranks]
    for rank, (store, compute) in enumerate(zip(stores, ranks, strict=True)):
        store.fill(DIGESTS, compute, label="texts", batch_size=8, rank=rank, world_size=2)
    assert sorted(ranks[0].asked + ranks[1].asked) == [0, 1, 3, 4]
    for store in stores:
        store.refresh()
        assert not store.missing(DIGESTS)


def test_a_killed_fill_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.multimodal_ads.features._PART_BYTES", 1)  # every batch is a part

    class Killed(Counting):
        def __call__(self, positions: list[int]) -> Mapping[str, Tensor]:
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(positions)

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, {}, Killed())
    rest = Counting()
    filled(tmp_path, {}, rest)
    assert rest.asked == [3, 4]


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    store = filled(tmp_path, {}, Counting())
    part = next(store.folder.glob("part-*"))
    (part / "values.npy").write_bytes((part / "values.npy").read_bytes()[:90])
    again = Counting()
    assert len(filled(tmp_path, {}, again)[DIGESTS[0]]["values"]) == 3
    assert sorted(again.asked) == [0, 1, 3, 4]


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.multimodal_ads.features.free_bytes", lambda _path: 10_000)
    store = FeatureStore(tmp_path, {})
    store.check_room(10, {"values": torch.zeros(1, 50, dtype=torch.bfloat16)})  # stored as 200 bytes
    with pytest.raises(UserError, match=r"need .* are\s*free; give --cache_dir"):
        store.check_room(100, {"values": torch.zeros(1, 50, dtype=torch.bfloat16)})


def test_bfloat16_keeps_its_values(tmp_path: Path) -> None:
    values = torch.randn(len(TEXTS), 4).bfloat16()
    store = FeatureStore(tmp_path, {})
    store.fill(DIGESTS, lambda positions: {"values": values[positions]}, label="texts", batch_size=8)
    assert np.array_equal(store[DIGESTS[1]]["values"], values[1].float().numpy())
