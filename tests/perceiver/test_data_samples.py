"""Samples, batches, inspection, splits, transforms, and sequences of several modalities."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data import (
    PadCollate,
    SequenceDataset,
    Subset,
    SyntheticPatterns,
    UnifiedPreprocessor,
    create_cifar10_sequence_dataset,
    create_synthetic_sequence_dataloader,
    inspect_dataset,
    series_augmentation,
    stratified_split,
)
from quartet.apps.perceiver.data.asking import Asking
from quartet.apps.perceiver.data.augment import Jitter, Pipeline, Scaling, TimeMask, TimeWarp, WindowSlice
from quartet.apps.perceiver.data.modalities import join
from quartet.apps.perceiver.data.samples import prevailing
from quartet.apps.perceiver.model import PerceiverModel
from quartet.apps.perceiver.outputs import Outputs


def test_synthetic_samples_are_functions_of_seed_and_index() -> None:
    first, second = (SyntheticPatterns(50, feature_dim=4, num_classes=12, seed=3) for _ in range(2))
    for index in (49, 0, 7):
        np.testing.assert_array_equal(first[index]["input"], second[index]["input"])
        assert len(first[index]["input"]) == first.length(index)
    other = SyntheticPatterns(50, feature_dim=4, num_classes=12, seed=4)
    assert not np.array_equal(first[0]["input"][:50], other[0]["input"][:50])


def test_synthetic_samples_keep_to_the_format() -> None:
    data = SyntheticPatterns(60, seq_len_range=(5, 9), feature_dim=3, num_classes=12)
    samples = [data[i] for i in range(len(data))]
    assert {len(s["input"]) for s in samples} == {5, 6, 7, 8, 9}
    assert all(s["input"].dtype == np.float32 and np.isfinite(s["input"]).all() for s in samples)
    assert all(s["mask"].shape == s["input"].shape[:1] and s["mask"].all() for s in samples)
    assert [s["label"] for s in samples] == data.labels.tolist()
    assert len(set(data.classes)) == 12
    assert len(list(data)) == 60  # iteration ends


@pytest.mark.parametrize(
    "wrong",
    [{"num_samples": 0}, {"feature_dim": 0}, {"num_classes": 0}, {"seq_len_range": (9, 5)}, {"seq_len_range": (0, 5)}],
)
def test_synthetic_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        SyntheticPatterns(**{"num_samples": 5, **wrong})


@pytest.mark.slow
def test_synthetic_patterns_are_learned_but_not_by_their_moments() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    torch.manual_seed(0)
    train, held_out = SyntheticPatterns(2000, feature_dim=16), SyntheticPatterns(400, feature_dim=16, seed=1)
    moments = [
        np.stack([np.r_[s["input"].mean(0), s["input"].std(0), np.abs(s["input"]).max(0)] for s in data])
        for data in (train, held_out)
    ]
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000)).fit(moments[0], train.labels)
    assert linear.score(moments[1], held_out.labels) < 0.7

    model = PerceiverModel(
        16, d_model=64, num_heads=4, num_self_attention_layers=2, num_latents=16, num_classes=len(train.classes)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(list(train), batch_size=32, shuffle=True, collate_fn=PadCollate(), generator=order)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=8 * len(loader))
    for _ in range(8):
        for batch in loader:
            torch.nn.functional.cross_entropy(model(batch["input"], batch["mask"]), batch["label"]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    batch = PadCollate()(list(held_out))
    with torch.no_grad():
        predicted = model(batch["input"], batch["mask"]).argmax(dim=1)
    assert (predicted == batch["label"]).float().mean() >= 0.95


class UserDataset(Dataset[Any]):
    """As the documentation shows it, with tensors."""

    def __init__(self, data: list[torch.Tensor], labels: list[int]) -> None:
        self.data, self.labels = data, labels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return {"input": self.data[idx], "label": self.labels[idx], "mask": torch.ones(len(self.data[idx]))}


def user_dataset(lengths: tuple[int, ...] = (3, 5, 4, 2)) -> UserDataset:
    rng = torch.Generator().manual_seed(0)
    return UserDataset([torch.randn(n, 2, generator=rng) for n in lengths], [i % 2 for i in range(len(lengths))])


def test_a_users_dataset_works_as_it_is() -> None:
    data = user_dataset()
    batch = PadCollate()([data[i] for i in range(4)])
    assert batch["input"].shape == (4, 5, 2)
    assert batch["label"].tolist() == [0, 1, 0, 1]
    assert batch["mask"].sum(dim=1).tolist() == [3, 5, 4, 2]
    assert not batch["input"][~batch["mask"]].any()
    torch.testing.assert_close(batch["input"][2, :4], data[2]["input"], rtol=0, atol=0)
    inspection = inspect_dataset(data, classes=("a", "b"))
    assert inspection.statistics.samples == 4
    augmented = series_augmentation(jitter=0.1, time_warp=0.3)
    assert augmented is not None
    assert PadCollate()([augmented(data[0], np.random.default_rng(0))])["input"].shape[2] == 2


def test_samples_without_a_mask_are_all_real() -> None:
    batch = PadCollate()([{"input": np.zeros((3, 1)), "label": 0}, {"input": np.zeros((2, 1)), "label": 1}])
    assert batch["mask"].tolist() == [[True] * 3, [True, True, False]]


def test_own_masks_are_kept() -> None:
    batch = PadCollate()([{"input": np.zeros((3, 1)), "label": 0, "mask": [1, 0, 1]}])
    assert batch["mask"].tolist() == [[True, False, True]]


def test_too_long_is_an_error_or_cut() -> None:
    data = user_dataset()
    with pytest.raises(UserError, match="5 positions is longer than max_seq_len=4"):
        PadCollate(max_seq_len=4)([data[1]])
    batch = PadCollate(max_seq_len=4, on_too_long="truncate")([data[1], data[3]])
    assert batch["mask"].sum(dim=1).tolist() == [4, 2]
    torch.testing.assert_close(batch["input"][0], data[1]["input"][:4], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"input": np.zeros((2, 3)), "label": 0}, {"input": np.zeros((2, 4)), "label": 0}], "different channels"),
        ([{"input": np.zeros((0, 3)), "label": 7}], r"sample 0 of the batch \(label 7\) has no real position"),
        ([{"input": np.zeros((2, 3)), "label": 0, "mask": [0, 0]}], "no real position"),
        ([{"input": np.zeros(3), "label": 0}], r"\[positions, channels\], got shape \[3\]"),
    ],
)
def test_samples_that_make_no_batch(samples: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PadCollate()(samples)


def sequences(count: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(1000.0, 3.0, size=(4 + n, 2)).astype(np.float32) for n in range(count)]


def test_statistics_are_those_of_all_positions() -> None:
    series = sequences()
    inspection = inspect_dataset(SequenceDataset(series, labels=[0, 1, 2, 0, 1, 0]), classes=("a", "b", "c"))
    together = np.concatenate(series).astype(np.float64)
    np.testing.assert_allclose(inspection.statistics.mean, together.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(inspection.statistics.std, together.std(axis=0), rtol=1e-10)
    assert inspection.lengths.tolist() == [4, 5, 6, 7, 8, 9]
    assert inspection.statistics.class_counts == (3, 2, 1)
    rows = dict(inspection.statistics.rows())
    assert rows["samples"] == "6 (0 skipped, 0 truncated)"
    assert rows["length"] == "4 to 9 positions, mean 6.5"
    assert rows["classes"] == "3: a 3, b 2, c 1"


def test_a_constant_channel_has_deviation_one() -> None:
    data = SequenceDataset([np.full((3, 1), 5.0, dtype=np.float32)], labels=[0])
    assert inspect_dataset(data, classes=("a",)).statistics.std == (1.0,)


@pytest.mark.parametrize("scale", [1e-30, 1e-7, 1.0, 1e20])
def test_a_channel_is_constant_relative_to_its_values(scale: float) -> None:
    rng = np.random.default_rng(0)
    series = rng.standard_normal((200, 4)).astype(np.float32)
    series[:, 1] = 0.1  # equal
    series[:, 2] = 1000 + 5e-5 * series[:, 2]  # rounding alone
    series[:, 3] += 1000
    statistics = inspect_dataset(SequenceDataset([series * np.float32(scale)], labels=[0]), classes=("a",)).statistics
    assert statistics.constant == (1, 2)
    np.testing.assert_allclose(np.array(statistics.std)[[0, 3]], series.std(axis=0)[[0, 3]] * scale, rtol=1e-3)
    assert statistics.std[1:3] == (1.0, 1.0)


@pytest.mark.parametrize("mask", [[0.0, -np.inf, 0.0], [0.0, -1e9, 0.0], [1.0, 0.5, 1.0], [2, 1, 1], [1, np.nan, 1]])
def test_masks_of_other_numbers_are_refused(mask: list[float]) -> None:
    sample = {"input": np.ones((3, 1)), "label": 0, "mask": np.array(mask)}
    with pytest.raises(UserError, match="a mask must be 1 where a position is real and 0 where it is not"):
        PadCollate()([sample])
    with pytest.raises(UserError, match="sample 2: a mask must be 1"):
        inspect_dataset(OneBad({"mask": np.array([*mask, 1])}), classes=("a", "b", "c"))


def test_transforms_do_not_see_hidden_positions() -> None:
    series = np.linspace(0, 1, 20, dtype=np.float32)[:, None].repeat(2, axis=1)
    mask = np.ones(20)
    mask[5:9] = 0
    spoilt = series.copy()
    spoilt[5:9] = np.nan
    for seed in range(20):
        for transform in (Pipeline(tuple(TRANSFORMS)), *TRANSFORMS):
            whole, gap = (
                transform({"input": values, "label": 0, "mask": mask}, np.random.default_rng(seed))
                for values in (series, spoilt)
            )
            np.testing.assert_array_equal(gap["mask"], whole["mask"])
            np.testing.assert_allclose(gap["input"], whole["input"], atol=1e-5)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"input": np.array([[0, 0], [1, np.nan]])}, "position 1, channel 1 is nan"),
    "infinite": ({"input": np.array([[np.inf, 0]])}, "position 0, channel 0 is inf"),
    "empty": ({"input": np.zeros((0, 2))}, "length 0"),
    "long": ({"input": np.zeros((11, 2))}, "11 positions are more than max_seq_len=10"),
    "channels": ({"input": np.zeros((3, 3))}, r"input is \[3, 3\], expected \[positions, 2\]"),
    "flat": ({"input": np.zeros(3)}, r"input is \[3\]"),
    "label": ({"label": 3}, "label 3 is out of range; expected 0 to 2"),
    "negative label": ({"label": -1}, "label -1 is out of range"),
    "broken label": ({"label": 0.5}, "label 0.5 is out of range"),
    "hidden": ({"mask": np.zeros(4)}, "show a position"),
    "mask": ({"mask": np.ones(3)}, r"mask must have shape \[4\]"),
}


class OneBad:
    """Good samples with one bad one at index 2."""

    def __init__(self, change: dict[str, Any]) -> None:
        self.good = SequenceDataset(sequences(), labels=[0, 1, 0, 2, 1, 2])
        self.change = change

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, index: int) -> Any:
        if index != 2:
            return self.good[index]
        return {"input": np.zeros((4, 2), dtype=np.float32), "label": 0, **self.change}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_sample_stops_or_is_counted(kind: str) -> None:
    change, message = BAD[kind]
    data = OneBad(change)
    with pytest.raises(UserError, match=f"sample 2: .*{message}"):
        inspect_dataset(data, classes=("a", "b", "c"), max_seq_len=10)
    inspection = inspect_dataset(data, classes=("a", "b", "c"), max_seq_len=10, on_bad_sample="skip")
    assert inspection.kept.tolist() == [0, 1, 3, 4, 5]
    assert len(inspection.problems) == inspection.statistics.skipped == 1
    subset = Subset(data, indices=inspection.kept)
    assert len(subset) == 5
    assert inspect_dataset(subset, classes=("a", "b", "c")).labels.tolist() == inspection.labels.tolist()


@pytest.mark.parametrize("odd", [0, 2, 5])
def test_channels_are_those_that_most_samples_have(odd: int) -> None:
    series = [np.zeros((3, 1 if place == odd else 2), dtype=np.float32) for place in range(6)]
    data = SequenceDataset(series, labels=[0] * 6)
    with pytest.raises(UserError, match=rf"sample {odd}: input is \[3, 1\], expected \[positions, 2\]"):
        inspect_dataset(data, classes=("a",))
    assert len(inspect_dataset(data, classes=("a",), on_bad_sample="skip").kept) == 5


def test_sizes_are_asked_for_until_one_is_well_ahead() -> None:
    asked = iter([1, *[2] * 20])
    assert prevailing(asked) == 2
    assert len(list(asked)) == 11
    assert prevailing([3, 4]) == 3
    assert prevailing(iter(())) is None


def test_messages_use_the_samples_origin() -> None:
    data = SequenceDataset([np.full((2, 1), np.nan, dtype=np.float32)], labels=[0], origins=["train.ts, line 17"])
    for dataset in (data, Subset(data, indices=[0])):
        with pytest.raises(UserError, match=r"train\.ts, line 17: position 0"):
            inspect_dataset(dataset, classes=("a",))


def test_truncation_is_counted() -> None:
    inspection = inspect_dataset(
        SequenceDataset(sequences(), labels=[0] * 6), classes=("a",), max_seq_len=7, on_too_long="truncate"
    )
    assert inspection.statistics.truncated == 2
    assert inspection.lengths.max() == 7


def test_nothing_to_train_on_is_said() -> None:
    with pytest.raises(UserError, match="training data: the dataset is empty"):
        inspect_dataset(SequenceDataset([], labels=[]), classes=("a",))
    nan = SequenceDataset([np.full((2, 1), np.nan, dtype=np.float32)] * 2, labels=[0, 0])
    for on_bad_sample in ("error", "skip"):  # to skip is no way out where nothing is left
        with pytest.raises(UserError, match=r"cannot be used:\n.*\n.*\n\.\.\. 2 of 2 samples: none can be used$"):
            inspect_dataset(nan, classes=("a",), on_bad_sample=on_bad_sample)


def test_how_many_samples_are_bad_is_said() -> None:
    series = [np.full((2, 1), np.nan if place < 7 else 1, dtype=np.float32) for place in range(9)]
    with pytest.raises(UserError) as told:
        inspect_dataset(SequenceDataset(series, labels=[0] * 9), classes=("a",))
    lines = str(told.value).splitlines()
    assert [line.partition(":")[0] for line in lines[1:-1]] == [f"sample {place}" for place in range(5)]
    assert lines[-1] == "... and 2 more, 7 of 9 samples; set --on_bad_sample skip to leave them out"


def test_a_class_missing_from_training_is_named() -> None:
    data = SequenceDataset(sequences(2), labels=[0, 2])
    with pytest.raises(UserError, match="no sample of class b; a model cannot learn"):
        inspect_dataset(data, classes=("a", "b", "c"))
    assert inspect_dataset(data, classes=("a", "b", "c"), every_class=False).statistics.class_counts == (1, 0, 1)


def test_splits_are_stratified_functions_of_the_seed() -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 50, 4, 1])
    large, small = stratified_split(labels, fraction=0.2, seed=0)
    assert np.bincount(labels[small], minlength=4).tolist() == [20, 10, 1, 0]
    assert np.sort(np.concatenate([large, small])).tolist() == list(range(155))
    again = stratified_split(labels, fraction=0.2, seed=0)
    np.testing.assert_array_equal(small, again[1])
    assert not np.array_equal(small, stratified_split(labels, fraction=0.2, seed=1)[1])


@pytest.mark.parametrize(("labels", "fraction"), [([0, 1], 0.0), ([0, 1], 1.0), ([0, 1], 0.5), ([], 0.5)])
def test_splits_that_cannot_be(labels: list[int], fraction: float) -> None:
    with pytest.raises(UserError, match="aside"):
        stratified_split(labels, fraction=fraction, seed=0)


TRANSFORMS = [Jitter(0.2), Scaling(0.2), TimeMask(0.5), WindowSlice(0.5), TimeWarp(0.5)]


@pytest.mark.parametrize("transform", [*TRANSFORMS, Pipeline(tuple(TRANSFORMS))], ids=lambda t: type(t).__name__)
def test_transforms_are_functions_of_the_generator_and_leave_the_sample(transform: Any) -> None:
    sample = SyntheticPatterns(1, feature_dim=3)[0]
    before = sample["input"].copy()
    results = []
    for seed in range(30):
        first, again = (transform(sample, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first["input"], again["input"])
        np.testing.assert_array_equal(first["mask"], again["mask"])
        assert first["input"].dtype == np.float32
        assert first["mask"].shape == first["input"].shape[:1]
        assert first["mask"].any()
        assert first["label"] == sample["label"]
        results.append(first)
    assert len({(r["input"].tobytes(), r["mask"].tobytes()) for r in results}) > 5
    np.testing.assert_array_equal(sample["input"], before)


def test_transforms_do_what_they_say() -> None:
    series = np.stack([np.linspace(0, 10, 21), np.linspace(5, -5, 21)], axis=1).astype(np.float32)
    sample = {"input": series, "label": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scaled = Scaling(0.5)(sample, rng)["input"]
        assert np.linalg.matrix_rank(np.stack([scaled[:, 0], series[:, 0]]), tol=1e-3) == 1
        masked = TimeMask(0.5)(sample, rng)
        hidden = np.flatnonzero(masked["mask"] == 0)
        assert len(hidden) <= 10
        assert not len(hidden) or hidden[-1] - hidden[0] + 1 == len(hidden)
        window = WindowSlice(0.5)(sample, rng)["input"]
        assert 11 <= len(window) <= 21
        assert (window == series[int(window[0, 0] * 2) :][: len(window)]).all()
        warped = TimeWarp(0.4, max_seq_len=25)(sample, rng)["input"]
        assert 12 <= len(warped) <= 25
        np.testing.assert_allclose(warped[:, 0], np.linspace(0, 10, len(warped)), atol=1e-5)
    noise = Jitter(0.1)(sample, np.random.default_rng(0))["input"] - series
    assert 0.05 * series.std() < noise.std() < 0.2 * series.std()


def test_no_strength_is_no_transform() -> None:
    assert series_augmentation() is None
    chain = series_augmentation(time_mask=0.2, scaling=0.1)
    assert chain is not None
    assert [type(step) for step in chain.steps] == [Scaling, TimeMask]


@pytest.mark.parametrize("kind", [TimeMask, TimeWarp, WindowSlice])
def test_strengths_out_of_range(kind: Any) -> None:
    for share in (1.0, -0.1):
        with pytest.raises(UserError, match="at least 0 and below 1"):
            kind(share)


def test_promised_loaders() -> None:
    loader = create_synthetic_sequence_dataloader(
        batch_size=8, num_samples=20, seq_len_range=(5, 9), feature_dim=6, num_classes=5
    )
    batches = list(loader)
    assert [len(b["label"]) for b in batches] == [8, 8, 4]
    assert batches[0]["input"].shape[2] == 6
    with pytest.raises(UserError, match="no CIFAR-10 there"):
        create_cifar10_sequence_dataset(batch_size=32, patch_size=8, data_dir="absent")


def test_modalities_share_one_width() -> None:
    unified = UnifiedPreprocessor(patch_size=4, series_channels=3, position_bands=2)
    image = np.random.default_rng(0).integers(0, 256, size=(8, 12, 3), dtype=np.uint8)
    series = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    parts = [unified.encode_text("Zoë"), unified.encode_image(image), unified.encode_series(series)]
    assert [p.shape for p in parts] == [(n, unified.channels) for n in (4, 6, 5)]  # ë is two bytes
    text, pixels, values = slice(0, 256), slice(256, 304), slice(304, 307)
    assert parts[0][:, text].argmax(axis=1).tolist() == list("Zoë".encode())
    assert (parts[0][:, text].sum(axis=1) == 1).all()
    np.testing.assert_allclose(parts[1][0, pixels], image[:4, :4].ravel() / 255, atol=1e-6)
    np.testing.assert_array_equal(parts[2][:, values], series)
    assert not parts[0][:, 256:307].any()
    assert not parts[1][:, text].any()
    flags = join(*parts)[:, -3:]
    assert flags.argmax(axis=1).tolist() == [0] * 4 + [1] * 6 + [2] * 5
    assert all(len(np.unique(p[:, 307:-3], axis=0)) == len(p) for p in parts)


def test_a_mixed_sequence_is_read_by_one_model() -> None:
    unified = UnifiedPreprocessor(patch_size=4, series_channels=2)
    torch.manual_seed(0)
    model = PerceiverModel(
        unified.channels, d_model=16, num_heads=2, num_self_attention_layers=1, num_latents=4, num_classes=3
    )
    mixed = join(unified.encode_image(np.zeros((8, 8, 3), np.uint8)), unified.encode_text("a cat"))
    batch = PadCollate()([{"input": mixed, "label": 0}, {"input": unified.encode_series(np.ones((4, 2))), "label": 1}])
    assert model(batch["input"], batch["mask"]).shape == (2, 3)


def test_modalities_that_were_not_chosen_or_do_not_fit() -> None:
    text = UnifiedPreprocessor(patch_size=0)
    with pytest.raises(UserError, match="without images"):
        text.encode_image(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="without series"):
        text.encode_series(np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"expected text \[positions, 256\], got \[0, 256\]"):
        text.encode_text("")
    with pytest.raises(UserError, match="no modality chosen"):
        UnifiedPreprocessor(text=False, patch_size=0)
    with pytest.raises(UserError, match=r"expected an image uint8"):
        replace(text, patch_size=4).encode_image(np.zeros((8, 8)))


def test_what_is_hidden_is_a_function_of_the_sample_or_of_the_draw() -> None:
    outputs = Outputs(kind="masked", names=("a",), mean=(1.0,), std=(2.0,), channels=(0,))
    asking = Asking(outputs=outputs, share=0.5, block=3)
    sample = {"input": np.arange(18, dtype=np.float32)[:, None], "label": 0, "mask": np.arange(18) != 7}
    asked = asking(sample)
    assert asked["query"].tolist() == asking(sample)["query"].tolist()
    assert not set(asked["query"]) & ({7} | set(np.flatnonzero(asked["mask"])))
    assert sorted([*asked["query"], 7]) == sorted({7} | set(np.flatnonzero(~asked["mask"])))
    np.testing.assert_allclose(asked["target"][:, 0], (asked["query"] - 1) / 2)
    drawn = [asking(asking.vary(sample, np.random.default_rng(seed)))["query"].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(asking({**sample, "mask": np.arange(18) == 4})["query"]) == 0, "something has to be seen"


def test_a_forecast_sees_its_context_and_asks_for_what_follows() -> None:
    outputs = Outputs(
        kind="forecast", names=("a",), mean=(0.0,), std=(1.0,), horizon=3, context=4, channels=(0,), covariates=()
    )
    asking = Asking(outputs=outputs)
    sample = {"input": np.arange(12, dtype=np.float32)[:, None], "label": 0, "mask": np.arange(12) != 10}
    known, new = asking(sample), asking.new(sample)
    assert known["input"][:, 0].tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert known["mask"].tolist() == [True] * 4 + [False] * 3
    assert known["query"].tolist() == new["query"].tolist() == [4, 5, 6]
    np.testing.assert_array_equal(known["target"][:, 0], [9, np.nan, 11])
    assert new["input"][:4, 0].tolist() == [8, 9, 10, 11]
    assert new["mask"].tolist() == [True, True, False, True, False, False, False]
    ends = {len(asking.vary(sample, np.random.default_rng(seed))["input"]) for seed in range(40)}
    assert ends == set(range(7, 13))
