"""Folds of patients, and a run of a protocol to its end."""

import csv
import json
from pathlib import Path

import pytest

from mlcore.base.distributed import World
from quartet.apps.sam_med3d_ich.build import load_splits, member_of
from quartet.apps.sam_med3d_ich.config import SamMed3DConfig
from quartet.apps.sam_med3d_ich.data.phantoms import write_phantoms
from tests.scripts import run_script

SHAPE, SPACING = (32, 32, 16), (6.0, 6.0, 10.0)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms: 24, two scans of a patient each, and four more."""
    folder = tmp_path_factory.mktemp("heads")
    write_phantoms(folder, train=24, validation=4, seed=0, shape=SHAPE, spacing=SPACING)
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["ich"])
    for number, row in enumerate(rows):
        row["patient_id"] = f"patient {number // 2}"
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def flags(heads: Path) -> list[str]:
    tables = [f"--{name}_csv={heads / f'{name}.csv'}" for name in ("train", "val")]
    return [*tables, f"--mask_dir={heads / 'masks'}"]


def test_no_patient_is_torn(heads: Path) -> None:
    values = {
        "data": {"train_csv": heads / "train.csv", "val_csv": heads / "val.csv", "mask_dir": heads / "masks"},
        "protocol": {"folds": 2, "inner": 2, "fold": 1},
    }
    held_out = list[str]()
    for fold in (1, 2):
        values["protocol"]["fold"] = fold  # type: ignore[index] # plain values
        config = SamMed3DConfig.model_validate(values)
        parts = member_of(load_splits(config.data, world=World()), config).named()
        patients = [{case.patient_id for case in cases} for cases in parts.values()]
        assert len(parts) == 3
        assert sum(map(len, patients)) == len(set.union(*patients)), "no patient is in two parts"
        held_out += [case.name for case in parts["test"]]
    assert len(held_out) == len(set(held_out)) == 28


@pytest.mark.slow
def test_a_protocol_ends_with_figures_of_all_cases(
    heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--model_type=vit_tiny", "--image_size=16", "--weights=none", "--spacing", "12", "12", "12"]
    small += ["--max_steps=2", "--batch_size=2", "--num_workers=0", "--num_threads=1", "--no_tensorboard"]
    ended = run_script(
        "apps/sam_med3d_ich/train.py",
        *flags(heads),
        *small,
        *("--folds=2", "--refit", "protocol.inner=2", "scheduler=cosine_warmup", "--output_dir=out"),
    )
    assert ended.code == 0, ended.err
    with Path("out/out_of_fold.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["sample"] for row in rows}) == len(rows) == 28
    reached = json.loads(Path("out/summary.json").read_text("utf-8"))["results_of_best_checkpoint"]["out_of_fold"]
    assert reached["n"] == 28
    assert {"score", "dice", "hd95", "lesion_sensitivity"} <= set(reached)
    assert Path("out/refit/checkpoints/latest_model.pth").is_file()
