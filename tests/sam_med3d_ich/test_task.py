"""Training and evaluation as the trainer sees them: sums that add up, figures of whole cases, a run from end to end."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlcore.base.distributed import World
from mlcore.cli.parse import parse
from mlcore.run.restore import load_run_checkpoint
from mlcore.training.engine import StepOutput
from quartet.apps.sam_med3d_ich.app import APP
from quartet.apps.sam_med3d_ich.build import build
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS, case_metrics
from quartet.apps.sam_med3d_ich.config import SamMed3DConfig
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing
from quartet.apps.sam_med3d_ich.data.volume import Volume
from quartet.apps.sam_med3d_ich.losses import dice_cross_entropy
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.restore import restored
from quartet.apps.sam_med3d_ich.segmentation import Segmenter, clicks_from_mask
from quartet.apps.sam_med3d_ich.task import IchTask

MakeModel = Callable[..., IchModel]
SIDE = 16


def make_task(model: IchModel, **options: Any) -> IchTask:
    segmenter = Segmenter(model=model, preprocessing=Preprocessing(spacing=None), overlap=0.0)
    return IchTask(model=model, segmenter=segmenter, mask_loss=partial(dice_cross_entropy, squared=True), **options)


def make_batch(size: int = 4, *, rounds: int = 4) -> dict[str, Tensor]:
    """Crops of which every second one is empty."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.zeros(size, 1, SIDE, SIDE, SIDE, dtype=torch.uint8)
    for index in range(0, size, 2):
        mask[index, :, 2 : 8 + index, 3:9, 4:12] = 1
    return {
        "image": torch.randn(mask.shape, generator=generator) + 2 * mask,
        "mask": mask,
        "label": mask.flatten(1).amax(1).float(),
        "draws": torch.rand(size, rounds, generator=generator),
    }


def make_cases() -> list[dict[str, Any]]:
    """Two bleeds, one of them in two parts, and a healthy head."""
    cases = []
    for index, shape in enumerate([(20, 18, 16), (13, 24, 9), (16, 16, 16)]):
        array = np.random.default_rng(index).normal(35, 12, size=shape).astype(np.float32)
        mask = np.zeros(shape, dtype=np.uint8)
        if index < 2:
            mask[2:7, 3:9, 2:6] = 1
        if index == 1:
            mask[10:12, 15:20, 7:9] = 1
        affine = np.diag([1.0, 0.8, 2.0 + index, 1.0])
        volume = Volume(array=array + 40 * mask, affine=affine)
        cases.append({"volume": volume, "mask": mask, "ich": int(mask.any()), "name": str(index), "index": index})
    return cases


def by_hand(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice with squares plus cross entropy of one crop, from their definitions."""
    p, t = logits.double().sigmoid(), mask.double()
    overlap = 1 - (2 * (p * t).sum() + 1e-5) / (p.square().sum() + t.square().sum() + 1e-5)
    return overlap - (t * p.log() + (1 - t) * (1 - p).log()).mean()


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("prompted", [False, True])
def test_the_loss_is_the_one_computed_by_hand(tiny_model: MakeModel, prompted: bool) -> None:
    model = tiny_model(prompted=prompted)
    task, batch = make_task(model, prompted=prompted, ich_weight=0.3), make_batch()
    output = task.training_step(model, batch)
    with torch.no_grad():
        clicks = {"target": batch["mask"], "draws": batch["draws"]} if prompted else {}
        answer = model(batch["image"], **clicks)
    rounds = 4 if prompted else 1
    assert answer.masks.shape[1] == rounds
    mask_loss = sum(by_hand(answer.masks[b, k], batch["mask"][b, 0]) for b in range(4) for k in range(rounds)) / rounds
    p, t = answer.ich.double().sigmoid(), batch["label"].double()
    ich_loss = -(t * p.log() + (1 - t) * (1 - p).log()).sum()
    assert output.count == 4
    assert output.logs["mask_loss"].item() == pytest.approx(float(mask_loss), rel=1e-4)
    assert output.logs["ich_loss"].item() == pytest.approx(ich_loss.item(), rel=1e-4)
    assert output.loss_sum.item() == pytest.approx(float(mask_loss + 0.3 * ich_loss), rel=1e-4)
    found, there = answer.masks[:, -1] > 0, batch["mask"][:, 0] > 0
    dice = sum(2 * float((f & t).sum()) / max(1, float(f.sum() + t.sum())) for f, t in zip(found, there, strict=True))
    assert output.logs["crop_dice"].item() == pytest.approx(dice, rel=1e-4)
    assert not any(value.requires_grad for value in output.logs.values())


def test_an_empty_crop_left_empty_counts_as_right(tiny_model: MakeModel) -> None:
    model = tiny_model()
    batch = make_batch(2)
    batch["mask"] = torch.zeros_like(batch["mask"])

    class Silent(torch.nn.Module):
        def forward(self, image: Tensor) -> Any:
            answer = model(image)
            return type(answer)(torch.full_like(answer.masks, -20.0), answer.ich)

    assert make_task(model).training_step(Silent(), batch).logs["crop_dice"].item() == 2


@pytest.mark.parametrize("prompted", [False, True])
def test_samples_add_up_whatever_batch_they_are_in(tiny_model: MakeModel, prompted: bool) -> None:
    model = tiny_model(prompted=prompted)
    task, batch = make_task(model, prompted=prompted), make_batch()

    def step(part: slice) -> tuple[StepOutput, dict[str, Tensor]]:
        model.zero_grad()
        output = task.training_step(model, {key: value[part] for key, value in batch.items()})
        output.loss_sum.backward()  # type: ignore[no-untyped-call]
        return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    (whole, gradients), *parts = (step(part) for part in (slice(0, 4), slice(0, 1), slice(1, 4)))
    torch.testing.assert_close(sum(part.loss_sum for part, _ in parts), whole.loss_sum, rtol=1e-4, atol=1e-4)
    assert sum(part.count for part, _ in parts) == whole.count
    for key, value in whole.logs.items():
        torch.testing.assert_close(sum(part.logs[key] for part, _ in parts), value, rtol=1e-4, atol=1e-4)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(sum(part[name] for _, part in parts), gradient, rtol=1e-3, atol=1e-4 * scale)


# ---------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("prompted", [False, True])
def test_rows_are_the_figures_of_what_segment_gives(tiny_model: MakeModel, prompted: bool) -> None:
    model = tiny_model(seed=1, prompted=prompted)
    task, cases = make_task(model, prompted=prompted), make_cases()
    rows = task.evaluation_step(model, cases)
    assert rows["figures"].shape == (3, len(FIELDS))
    assert rows["ich_label"].tolist() == [1, 1, 0]
    for case, row, score in zip(cases, rows["figures"], rows["ich_score"], strict=True):
        clicks = clicks_from_mask(case["mask"], case["volume"].affine) if prompted else None
        found = task.segmenter(case["volume"], clicks=clicks)
        expected = case_metrics(found.mask, target=case["mask"], affine=case["volume"].affine)
        np.testing.assert_allclose(row.numpy(), expected.to_row())
        assert score.item() == pytest.approx(found.ich_score)
    one_by_one = [task.evaluation_step(model, [case]) for case in cases]
    for key, value in rows.items():
        torch.testing.assert_close(torch.cat([row[key] for row in one_by_one]), value, equal_nan=True)


def test_metrics_are_means_over_cases(tiny_model: MakeModel) -> None:
    task = make_task(tiny_model())
    figures = {
        "dice": [0.8, 0.5, math.nan, 0.0],
        "iou": [0.7, 0.3, math.nan, 0.0],
        "hd95_mm": [2.0, 4.0, math.nan, math.nan],
        "volume_ml": [10.0, 2.0, 0.0, 0.0],
        "predicted_ml": [8.0, 3.0, 0.0, 1.0],
        "volume_error_ml": [-2.0, 1.0, 0.0, 1.0],
        "lesions": [1.0, 3.0, 0.0, 0.0],
        "found": [1.0, 2.0, 0.0, 0.0],
        "false_positives": [0.0, 1.0, 0.0, 3.0],
    }
    rows = torch.tensor([figures[name] for name in FIELDS], dtype=torch.float64).T
    predictions = {
        "figures": rows,
        "ich_score": torch.tensor([0.9, 0.2, 0.1, 0.3]),
        "ich_label": torch.tensor([1, 1, 0, 0]),
    }
    assert task.metrics(predictions) == pytest.approx(
        {
            "score": 0.65 * (1 + 0.75 + 0.5) / 3,
            "dice": 0.65,
            "dice_lesion": 0.65,
            "iou": 0.5,
            "hd95": 3.0,
            "hd95_undefined": 0,
            "volume_error_ml": 0.0,
            "volume_abs_error_ml": 1.0,
            "lesion_sensitivity": 0.75,
            "false_positives": 1.0,
            "specificity": 0.5,
            "auroc": 0.75,
        }
    )


# --------------------------------------------------------------------------------------------------------- end to end


PROMPTED = ["--prompt_mode", "clicks", "--num_clicks", "2"]


@pytest.mark.parametrize("more", [[], PROMPTED, ["--freeze_encoder"]], ids=["plain", "clicks", "frozen"])
def test_a_problem_is_built_and_gives_finite_losses(
    small: Sequence[str], folders: Sequence[str], more: list[str]
) -> None:
    setup = build(parse(APP, [*small, *folders, *more]).config, World())
    task, dataset = setup.task, setup.train.dataset
    assert isinstance(task, IchTask)
    assert setup.transform is not None
    samples = [setup.transform(dataset[index], np.random.default_rng(index)) for index in range(2)]
    output = task.training_step(task.model, torch.utils.data.default_collate(samples))
    assert output.loss_sum.isfinite()
    output.loss_sum.backward()  # type: ignore[no-untyped-call]
    assert len(setup.validation.dataset) == 2
    assert any(p.requires_grad for p in task.model.sam.image_encoder.parameters()) is ("--freeze_encoder" not in more)


@pytest.mark.parametrize("name", ["plain", "clicks"])
def test_a_training_leaves_the_promised_files(trained: Callable[[str], Path], name: str) -> None:
    folder = trained(name)
    state = torch.load(folder / "sam_encoder.pth", weights_only=True)
    best = folder / "checkpoints" / "best_model.pth"
    read = load_run_checkpoint(best, app="sam_med3d_ich", config_cls=SamMed3DConfig)
    found = restored(read, device=torch.device("cpu"))
    encoder = found.model.sam.image_encoder
    assert found.prompted is (name == "clicks")
    for key, value in encoder.state_dict().items():
        assert torch.equal(state["image_encoder_state_dict"][key], value)
    assert state["image_encoder_state_dict"].keys() == encoder.state_dict().keys()
    assert (folder / "checkpoints" / "latest_model.pth").is_file()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["model_type"] == "vit_tiny"
    (summary,) = folder.glob("training_summary_*.json")
    assert json.loads(summary.read_text(encoding="utf-8"))
    for file in ("report.html", "summary.md", "metrics.csv", "cases.csv", "config.yaml"):
        assert (folder / file).is_file(), file
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for figure in ("train/loss", "val/dice"):
        values = [line[figure] for line in lines if figure in line]
        assert values, (figure, lines)
        assert all(math.isfinite(value) for value in values)
