"""Runs of the training script: what they leave, what options do, and what is refused."""

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.run.build import build_trainer, train_loader
from mlcore.run.decision import read_decision
from mlcore.training import losses
from quartet.apps.doc_ensemble.build import build
from quartet.apps.doc_ensemble.config import DocConfig
from quartet.apps.doc_ensemble.data.balance import Balanced
from quartet.apps.doc_ensemble.data.dataset import Fit, PageDataset
from quartet.apps.doc_ensemble.restore import CheckpointMember, restore
from quartet.apps.doc_ensemble.splits import load_splits
from quartet.apps.doc_ensemble.task import DocTask, Objective

PROMISED = (
    "val_class_metrics.csv",
    "val_class_performance.png",
    "confusion_matrix.png",
    "train_val_comparison.png",
    "val_predictions.csv",
    "calibration.json",
    "decision.json",
    "operating_point.png",
    "test_operating_point.png",
    "report.html",
    "checkpoints/best_model.pth",
)
CPU = torch.device("cpu")


def config_of(pages: Path, **sections: dict[str, object]) -> DocConfig:
    model = {"model_name": "test_resnet", "pretrained": False, "image_size": (64, 48), "in_channels": 1}
    return DocConfig.model_validate(
        {"data": {"data_dir": pages}, "model": model | sections.pop("model", {}), **sections}, strict=False
    )


def test_a_run_leaves_the_promised_files_and_prints_the_summary(finished: tuple[Path, str]) -> None:
    folder, said = finished
    assert [name for name in PROMISED if not (folder / name).is_file()] == []
    assert "클래스별 성능 요약" in said
    assert "certificate" in said
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert set(summary["results_of_best_checkpoint"]) == {"train", "val", "test"}


def test_predictions_are_those_of_the_restored_model(finished: tuple[Path, str], pages: Path) -> None:
    restored = restore(finished[0] / "checkpoints" / "best_model.pth", device=CPU)
    setup = build(config_of(pages), World(device=CPU))
    data = setup.validation
    assert data.prepare is not None
    with (finished[0] / "val_predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 34
    sample = data.prepare(data.dataset[20])
    with torch.inference_mode():
        chances = torch.softmax(restored(torch.from_numpy(sample["pixels"])[None])[0], dim=0).numpy()
    decision = read_decision(finished[0])
    assert decision is not None
    calibration = json.loads((finished[0] / "calibration.json").read_text("utf-8"))
    assert decision.temperature == calibration["val"]["temperature"]
    chances = decision.calibrated(chances[None])[0]
    written = np.array([float(rows[20][f"p_{name}"]) for name in decision.class_names])
    np.testing.assert_allclose(written, chances, atol=2e-6)
    assert rows[20]["label"] == decision.class_names[sample["label"]]


def test_a_member_knows_its_input_and_classes_before_its_weights_are_loaded(finished: tuple[Path, str]) -> None:
    member = CheckpointMember("one", finished[0] / "checkpoints" / "best_model.pth")
    assert (member.image_size, member.in_channels, len(member.class_names)) == ((64, 48), 1, 17)
    again = member.load(CPU)
    whole = restore(member.path, device=CPU)
    pixels = torch.rand(2, 1, 64, 48)
    assert torch.equal(again(pixels), whole(pixels))


def test_a_table_and_folders_of_the_same_pages_give_the_same_validation(tmp_path: Path, pages: Path) -> None:
    tables = {}
    for split in ("train", "val"):
        files = sorted((pages / split).rglob("*.jpg"))
        tables[split] = tmp_path / f"{split}.csv"
        lines = [f"{path},{path.parent.name}" for path in files]
        tables[split].write_text("\n".join(["image,label", *lines]), encoding="utf-8")
    by_table = DocConfig.model_validate(
        {
            "data": {"train_csv": tables["train"], "val_csv": tables["val"]},
            "model": {"model_name": "test_resnet", "pretrained": False, "image_size": (64, 48), "in_channels": 1},
        },
        strict=False,
    )
    one, other = (build(c, World(device=CPU)).validation.dataset for c in (by_table, config_of(pages)))
    assert sorted((one[i]["label"], one[i]["image"].tobytes()) for i in range(len(one))) == sorted(
        (other[i]["label"], other[i]["image"].tobytes()) for i in range(len(other))
    )


def test_without_validation_pages_every_class_gives_some_up(tmp_path: Path, pages: Path) -> None:
    shutil.copytree(pages / "train", tmp_path / "all")
    setup = build(config_of(tmp_path / "all", data={"data_dir": tmp_path / "all"}), World(device=CPU))
    train, val = (
        Counter(d[i]["label"] for i in range(len(d))) for d in (setup.train.dataset, setup.validation.dataset)
    )
    assert set(val) == set(range(17))
    assert sum(train.values()) + sum(val.values()) == 102


def test_an_unknown_class_in_validation_is_named(tmp_path: Path, pages: Path, run, tiny) -> None:
    shutil.copytree(pages, tmp_path / "set")
    (tmp_path / "set" / "val" / "memo").rename(tmp_path / "set" / "val" / "postcard")
    code, said = run("train", *tiny, "--data_dir", tmp_path / "set")
    assert code == 2
    assert "unknown class 'postcard'" in said


def test_the_same_page_in_two_splits_is_refused(tmp_path: Path, pages: Path, run, tiny) -> None:
    shutil.copytree(pages, tmp_path / "set")
    page = next((tmp_path / "set" / "train" / "memo").glob("*.jpg"))
    shutil.copy(page, tmp_path / "set" / "val" / "memo" / "copy.jpg")
    code, said = run("train", *tiny, "--data_dir", tmp_path / "set")
    assert code == 2
    assert "more than one of train, val" in said
    assert page.name in said


def test_mixed_batches_follow_from_pages_and_epochs_alone(pages: Path) -> None:
    config = config_of(pages, augmentation={"name": "page", "mixup": 0.4, "cutmix": 1.0}, train={"batch_size": 8})
    from mlcore.run.build import train_loader

    batches = []
    for workers in (0, 2):
        changed = config.model_copy(update={"run": config.run.model_copy(update={"num_workers": workers})})
        loader = train_loader(changed, build(changed, World(device=CPU)), world=World(device=CPU))
        batches.append([batch.data for batch in loader.epoch(3)][:2])
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["pixels"], other["pixels"])
        assert torch.equal(one["target"], other["target"])
        assert ((one["target"] > 0).sum(dim=1) == 2).any()


def test_balanced_sampling_shows_each_class_equally_often() -> None:
    labels = [0] * 7 + [1] * 2 + [2]
    balanced = Balanced(list(range(10)), labels=labels, seed=0)
    for epoch in range(4):
        drawn = [balanced.in_epoch(epoch, place) for place in range(len(balanced))]
        assert Counter(labels[index] for index in drawn) == {0: 7, 1: 7, 2: 7}
        assert set(drawn) == set(range(10))
        counts = Counter(drawn)
        assert {counts[7], counts[8]} == {3, 4}


def test_balanced_sampling_repeats_other_pages_in_each_epoch() -> None:
    """4 of 10 pages of the small class come twice; over the epochs all come equally often."""
    labels = [0] * 14 + [1] * 10
    balanced, other = (Balanced(list(range(24)), labels=labels, seed=seed) for seed in (0, 1))
    epochs = [Counter(balanced.in_epoch(epoch, place) for place in range(28)) for epoch in range(50)]
    twice = [frozenset(page for page, count in epoch.items() if count == 2) for epoch in epochs]
    assert {len(pages) for pages in twice} == {4}
    assert len(set(twice)) > 30
    shown = sum(epochs, Counter())
    assert max(shown[page] for page in range(14, 24)) - min(shown[page] for page in range(14, 24)) < 25  # of 70
    assert [balanced.in_epoch(3, place) for place in range(28)] != [other.in_epoch(3, place) for place in range(28)]
    # A function of the epoch, not of what was asked before.
    again = Balanced(list(range(24)), labels=labels, seed=0)
    assert Counter(again.in_epoch(49, place) for place in range(28)) == epochs[49]


def test_a_balanced_epoch_is_the_same_from_any_position(pages: Path) -> None:
    """So that a run that goes on sees what one that was never stopped sees."""
    config = config_of(pages, loss={"balanced_sampling": True})
    setup = build(config, World(device=CPU))
    kept = load_splits(config).train[2:]  # four pages of the first class, six of the others
    labels = [page.label for page in kept]
    dataset = Balanced(PageDataset(kept, max_pixels=10**8, grey=True, fit=Fit((64, 48))), labels=labels, seed=0)
    setup = replace(setup, train=replace(setup.train, dataset=dataset))
    loader = train_loader(config, setup, world=World(device=CPU))

    def read(epoch: int, start: int = 0) -> list[int]:
        return [int(index) for batch in loader.epoch(epoch, start=start) for index in batch.data["index"]]

    assert read(2, start=2 * config.train.batch_size) == read(2)[2 * config.train.batch_size :]
    assert sorted(read(2)) != sorted(read(3))


def test_the_weighted_objective_is_torchs_weighted_mean() -> None:
    logits, label = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 2])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    objective = Objective(class_weights=weight)
    loss_sum, count = objective(logits, torch.nn.functional.one_hot(label, 3).double())
    expected = torch.nn.functional.cross_entropy(logits, label, weight=weight)
    torch.testing.assert_close(loss_sum / count, expected)


@pytest.mark.parametrize("gamma", [None, 2.0])
def test_a_perfectly_trained_network_calls_no_page_by_a_rare_class_for_its_weight(gamma: float | None) -> None:
    weight = torch.ones(17)
    weight[16] = 167.0
    objective = Objective(class_weights=weight, label_smoothing=0.1, focal_gamma=gamma)
    target = torch.eye(17)[:3]
    target[2] = 0.99 * target[2] + 0.01 * target[0]  # mixed with a little of another page
    logits = torch.zeros(3, 17, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss_sum, count = objective(logits, target)
        (loss_sum / count).backward()
        optimizer.step()
    assert logits.argmax(dim=1).tolist() == [0, 1, 2]
    assert float(count) == pytest.approx(3.0)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_recomputed_activations_do_not_move_running_statistics_twice(pages: Path, name: str) -> None:
    states = []
    for recompute in (False, True):
        torch.manual_seed(0)
        train = {"gradient_checkpointing": recompute, "batch_size": 8}
        config = config_of(pages, model={"model_name": name}, train=train, augmentation={"name": "none"})
        trainer = build_trainer(config, build(config, World(device=CPU)), world=World(device=CPU))
        trainer.engine.model.train()
        for window in trainer.windows_over_epochs(1):
            trainer.engine.run_window(trainer.task.training_step, window)
        states.append(dict(trainer.task.model.named_buffers()))
    counts = {int(value) for key, value in states[1].items() if key.endswith("num_batches_tracked")}
    assert counts == {1}
    torch.testing.assert_close(states[1], states[0])


def test_weights_and_balanced_sampling_together_are_doubted(pages: Path) -> None:
    both = config_of(pages, loss={"class_weights": True, "balanced_sampling": True})
    assert "one of the two is enough" in str(build(both, World(device=CPU)).warnings)
    one = config_of(pages, loss={"class_weights": True})
    assert "one of the two" not in str(build(one, World(device=CPU)).warnings)


def test_a_model_for_focal_loss_trains_with_it(pages: Path) -> None:
    config = config_of(pages, model={"use_focal_loss": True, "alpha": 0.5, "gamma": 3.0})
    task = build(config, World(device=CPU)).task
    assert isinstance(task, DocTask)
    logits, label = torch.randn(4, 17), torch.tensor([0, 5, 9, 16])
    loss_sum, count = task.objective(logits, torch.nn.functional.one_hot(label, 17).float())
    torch.testing.assert_close(loss_sum, losses.focal(logits, label, alpha=0.5, gamma=3.0).sum())
    assert count == 4


def test_one_class_is_refused(tmp_path: Path, pages: Path) -> None:
    shutil.copytree(pages / "train" / "memo", tmp_path / "set" / "memo")
    with pytest.raises(UserError, match="only one class, memo"):
        build(config_of(tmp_path / "set", data={"data_dir": tmp_path / "set"}), World(device=CPU))
