"""One network learns what an ensemble says: the loss, whose answers are whose, going on, what is kept of the gain."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from torch import nn
from torch.nn import functional

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.data.loader import BatchLoader
from mlcore.data.mixing import Mixing
from mlcore.data.order import EpochOrder
from mlcore.training.checkpoint import load_checkpoint
from quartet.apps.doc_ensemble.config import (
    AugmentationConfig,
    DataConfig,
    DistillConfig,
    DocConfig,
    LossConfig,
    UnaskedConfig,
)
from quartet.apps.doc_ensemble.data.augment import PageAugmentation
from quartet.apps.doc_ensemble.data.dataset import Fit, PageDataset, Prepare
from quartet.apps.doc_ensemble.data.folders import find_pages, read_folders
from quartet.apps.doc_ensemble.data.generated import draw_page
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.distill import data_arguments
from quartet.apps.doc_ensemble.keeping import share_kept
from quartet.apps.doc_ensemble.splits import Splits
from quartet.apps.doc_ensemble.task import DocTask, Objective
from quartet.apps.doc_ensemble.teaching import Taught, Teacher, ask_teacher
from quartet.command import main
from tests.doc_ensemble.conftest import Run
from tests.doc_ensemble.tiny_runs import write_checkpoint

B, C, T, W = 6, 4, 3.0, 0.7


# ------------------------------------------------------------------------------------------------------------ the loss


def some(*, seed: int) -> torch.Tensor:
    return torch.randn(B, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_gradient_is_that_of_the_formula() -> None:
    """Of logits z: (1 - w) (softmax(z) - target) + w T (softmax(z / T) - teacher); no hard term without a label."""
    logits, label = some(seed=0).requires_grad_(), torch.tensor([0, 3, -1, 1, -1, 2])
    teacher = torch.softmax(some(seed=1) / T, dim=1)
    known = (label >= 0)[:, None]
    target = functional.one_hot(label.clamp(min=0), C).double()
    loss, count = Objective(temperature=T, taught=W).with_teacher(logits, target, teacher, label >= 0)
    loss.backward()
    hard = torch.where(known, torch.softmax(logits, dim=1) - target, 0.0)
    soft = torch.softmax(logits / T, dim=1) - teacher
    torch.testing.assert_close(logits.grad, ((1 - W) * hard + W * T * soft).detach())
    assert count == B
    kl = (teacher * (teacher.log() - torch.log_softmax(logits / T, dim=1))).sum(dim=1)
    plain = functional.cross_entropy(logits, label, ignore_index=-1, reduction="none")
    torch.testing.assert_close(loss, ((1 - W) * plain + W * T**2 * kl).sum())


def test_a_batch_with_answers_is_learned_with_them_and_its_accuracy_is_of_labelled_pages() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, C))
    task = DocTask(model=model, class_names=list("abcd"), objective=Objective(temperature=T, taught=W))
    pixels, label = torch.rand(B, 1, 2, 2), torch.tensor([0, 3, -1, 1, -1, 2])
    with torch.no_grad():
        right = int((model(pixels).argmax(dim=1) == label).sum())
    teacher = torch.softmax(some(seed=1) / T, dim=1).float()
    out = task.training_step(model, {"pixels": pixels, "label": label, "teacher": teacher})
    target = functional.one_hot(label.clamp(min=0), C).float()
    expected, _ = task.objective.with_teacher(model(pixels), target, teacher, label >= 0)
    torch.testing.assert_close(out.loss_sum, expected)
    assert float(out.logs["accuracy"]) / B == pytest.approx(right / 4)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 0.4)])
def test_answers_are_mixed_by_the_shares_of_their_pages(mixup: float, cutmix: float) -> None:
    """Each sample is all of one value, and its answer says which: what of a page is whose is what of an answer is."""
    values = torch.arange(B, dtype=torch.float32)
    pixels = values[:, None, None, None].expand(B, 1, 16, 16)
    keys, label = torch.arange(B) * 7919 + 3, torch.arange(B) % C
    teacher = torch.eye(B)
    mixed = Mixing(C, mixup=mixup, cutmix=cutmix)({"pixels": pixels, "label": label, "key": keys, "teacher": teacher})
    torch.testing.assert_close(mixed["teacher"] @ values, mixed["pixels"].mean(dim=(1, 2, 3)))
    untaught = Mixing(C, mixup=mixup, cutmix=cutmix)({"pixels": pixels, "label": label, "key": keys})
    assert torch.equal(mixed["pixels"], untaught["pixels"])
    assert torch.equal(mixed["target"], untaught["target"])


@pytest.mark.parametrize("workers", [0, 2])
def test_answers_follow_their_pages(pages: Path, workers: int) -> None:
    found = [Page(page.path, digest=page.path.name) for page in find_pages(pages / "val")]
    rng = np.random.default_rng(0)
    answers = {page.digest: softmax(rng.normal(size=C)) for page in found}
    fit = Fit((16, 16))
    said = np.stack([answers[page.digest] for page in found])
    dataset = Taught(PageDataset(found, max_pixels=10**8, grey=True, fit=fit), said, temperature=T)
    order = EpochOrder(size=len(found), batch_size=5, seed=1)
    loader = BatchLoader(dataset, order, transform=PageAugmentation("none"), prepare=Prepare(fit), num_workers=workers)
    seen = 0
    for batch in loader.epoch(1):
        for index, teacher in zip(batch.data["index"].tolist(), batch.data["teacher"], strict=True):
            logits = np.log(answers[found[index].digest])
            np.testing.assert_allclose(teacher.numpy(), softmax(logits / T), rtol=1e-5)
            seen += 1
    assert seen == len(found)


# ---------------------------------------------------------------------------------------------------- what is kept


def guesses(labels: np.ndarray, wrong: int) -> np.ndarray:
    """Right but for the first ones."""
    return np.where(np.arange(len(labels)) < wrong, (labels + 1) % C, labels)


def test_the_share_of_the_gain_is_that_of_the_figures() -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(400) % C)
    said = {"teacher": guesses(labels, 0), "best member": guesses(labels, 100), "student": guesses(labels, 25)}
    found = share_kept(said, labels, units=range(400))
    assert found["gain"] == pytest.approx(0.25, abs=0.01)
    assert found["kept"] == pytest.approx(0.75, abs=0.02)
    low, high = found["kept_interval"]
    assert low < found["kept"] < high
    assert "keeps 7" in found["said"]
    none = share_kept({**said, "teacher": said["best member"]}, labels, units=range(400))
    assert (none["gain"], none["kept"]) == (0, None)
    assert "nothing to keep" in none["said"]
    unsure = share_kept({**said, "best member": guesses(labels, 1), "student": guesses(labels, 2)}, labels,
                        units=range(400))  # fmt: skip
    assert unsure["kept"] < 0
    assert unsure["kept_interval"] is None
    assert "not sure that there is a gain" in unsure["said"]


# ------------------------------------------------------------------------------------------------------------- a run


@pytest.fixture
def ensemble(tmp_path: Path, pages: Path, run: Run) -> Path:
    """An experiment's folder."""
    folder, classes = tmp_path / "teacher", read_folders(pages).classes
    models = [write_checkpoint(folder / f"{k}.ckpt", seed=k, classes=classes, data_dir=pages) for k in (0, 1)]
    listed = ", ".join(f"{{name: m{k}, checkpoint_path: {path}}}" for k, path in enumerate(models))
    code, said = run("run_ensemble_experiment", f"ensemble.models=[{listed}]", "--output_dir", folder / "out")
    assert code == 0, said
    return folder / "out"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoints" / "latest_model.pth")["model"]
    return found


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return found


@pytest.mark.slow
def test_a_student_is_trained_and_compared_and_goes_on_bit_exactly(
    tmp_path: Path, pages: Path, ensemble: Path, run: Run, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's data settings are taken over; an interrupted run asks nothing again and ends with equal weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for number, page in enumerate(sorted((pages / "test").rglob("*.jpg"))[:3]):
        (tmp_path / "more" / f"{number}.jpg").write_bytes(page.read_bytes())
    Image.new("L", (60, 80), 90).save(tmp_path / "more" / "new.png")
    command = ["distill", str(ensemble), *tiny, "--distill.unlabelled", tmp_path / "more"]
    code, said = run(*command, "--output_dir", tmp_path / "whole")
    assert code == 0, said
    assert "3 of the 4 pages of" in said
    assert said.count("is asked about") == 2  # the ensemble, and its best member
    found = summary(tmp_path / "whole")["distillation"]
    assert set(found) == {"val", "test"}
    results = summary(tmp_path / "whole")["results_of_best_checkpoint"]
    theirs = summary(ensemble)
    for split in found:
        assert found[split]["student"]["macro_f1"] == pytest.approx(results[split]["macro_f1"])
        teacher = theirs["results_of_best_checkpoint"][split]
        assert found[split]["teacher"]["macro_f1"] == pytest.approx(teacher["macro_f1"])
        (member,) = [
            row for row in theirs["methods"]
            if row["method"] == theirs["best_member"] == found[split]["member"]
            and row["pages"].startswith({"val": "validation", "test": "test"}[split])
        ]  # fmt: skip
        assert found[split]["best member"]["macro_f1"] == pytest.approx(member["macro_f1"])
    assert "Test: teacher and student" in (tmp_path / "whole" / "report.html").read_text("utf-8")

    reads = 0
    plain = Taught.__getitem__

    def stopping(self: Taught, index: int) -> dict[str, Any]:
        nonlocal reads
        reads += 1
        if reads == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Taught, "__getitem__", stopping)
        code, said = run(*command, "--output_dir", tmp_path / "parts")
    assert code == 75, said
    assert "is asked about" not in said
    code, said = run(*command, "--output_dir", tmp_path / "parts")
    assert code == 0, said
    assert "is asked about" not in said
    assert "resuming" in said
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def asked(pages: Path, teacher: Path | str, **settings: Any) -> Teacher | None:
    """What a run on the pages asks first."""
    distill = (UnaskedConfig if settings.pop("dry", False) else DistillConfig)(
        teacher=str(teacher), unlabelled=settings.pop("unlabelled", None)
    )
    config = DocConfig(data=DataConfig(data_dir=pages), distill=distill, **settings)
    found = read_folders(pages)
    splits = Splits(classes=found.classes, train=found.train, validation=found.val or (), test=found.test)
    return ask_teacher(config, splits, World())


def test_what_a_teacher_cannot_teach_is_refused(tmp_path: Path, pages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    classes = list(read_folders(pages).classes)
    ask = partial(asked, pages)
    teacher = write_checkpoint(tmp_path / "teacher.ckpt", seed=0, classes=classes, data_dir=pages)
    other = write_checkpoint(tmp_path / "other.ckpt", seed=0, classes=[*classes[1:], classes[0]], data_dir=pages)
    with pytest.raises(UserError, match=f"the same classes in another order, output 0 is '{classes[1]}'"):
        ask(other)
    with pytest.raises(UserError, match="cannot be mixed"):
        ask(teacher, unlabelled=pages, augmentation=AugmentationConfig(mixup=0.2))
    with pytest.raises(UserError, match="no class to balance"):
        ask(teacher, unlabelled=pages, loss=LossConfig(balanced_sampling=True))
    with pytest.raises(UserError, match=r"none\.ckpt"):
        ask(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"expected null without distill\.teacher"):
        DistillConfig(unlabelled=pages)
    opened = ask(teacher, dry=True)
    assert opened is not None
    assert opened.of_member == {}
    assert not list(tmp_path.rglob("*.jsonl"))  # a dry run asks nothing


def test_copies_of_held_out_pages_are_not_learned_from_as_pages_without_labels(
    tmp_path: Path, pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that was scaled nor one that was compressed anew; the note says how many."""
    monkeypatch.chdir(tmp_path)
    (more := tmp_path / "more").mkdir()
    for split, scale in (("val", 1.5), ("test", 1.0)):
        page = Image.open(min((pages / split).rglob("*.jpg")))
        size = (round(page.width * scale), round(page.height * scale))
        page.resize(size).save(more / f"{split}.jpg", quality=60)
    draw_page("letter", np.random.default_rng(5)).save(more / "new.png")
    classes = read_folders(pages).classes
    teacher = write_checkpoint(tmp_path / "teacher.ckpt", seed=0, classes=classes, data_dir=pages)
    found = asked(pages, teacher, unlabelled=more, dry=True)
    assert found is not None
    assert [(page.path.name, page.label) for page in found.unlabelled] == [("new.png", None)]
    assert "2 of the 3 pages of" in found.notes[0]


def test_the_teachers_pages_are_taken_unless_others_are_given(tmp_path: Path) -> None:
    kept = {"source": "files", "data_dir": "my pages", "train_csv": None, "split_seed": 3, "fit": "letterbox"}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": {"data": kept}}), encoding="utf-8")
    (tmp_path / "ensemble.json").write_text(json.dumps({"data": kept}), encoding="utf-8")
    own = ["data.source=files", "data.data_dir=my pages", "data.split_seed=3", "data.fit=letterbox"]
    for teacher in (tmp_path, tmp_path / "run", tmp_path / "run" / "checkpoints" / "best_model.pth"):
        assert data_arguments(str(teacher), ["--epochs", "3"]) == own
        for given in (["--train-csv", "t.csv"], ["data.data_dir=x"], ["--demo"]):
            assert data_arguments(str(teacher), given) == own[2:]
    assert data_arguments("s3://bucket/run/checkpoints/best_model.pth", []) == []


def test_the_verb_is_the_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["quartet"])
    monkeypatch.delitem(sys.modules, "quartet.apps.doc_ensemble.distill")  # a command line has imported it no more
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--demo"])
    assert ended.value.code == 2
    assert "say whose answers are learned: quartet distill RUN" in capsys.readouterr().err
