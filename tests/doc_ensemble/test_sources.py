"""Members are found in checkpoints, runs, snapshots and cross-validations, and what is missing is told at once."""

from pathlib import Path

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.cli.parse import parse
from quartet.apps.doc_ensemble.app import APP
from quartet.apps.doc_ensemble.config import EnsembleConfig, MemberConfig
from quartet.apps.doc_ensemble.ensemble.predicting import mean_of_parts
from quartet.apps.doc_ensemble.ensemble.sources import find_sources, out_of_fold
from tests.doc_ensemble.tiny_runs import write_checkpoint, write_job


@pytest.fixture(scope="module")
def classes(pages: Path) -> list[str]:
    return sorted(folder.name for folder in (pages / "train").iterdir())


def listed(*members: tuple[str, Path], method: str = "averaging") -> EnsembleConfig:
    models = tuple(MemberConfig(name=name, checkpoint_path=str(path)) for name, path in members)
    return EnsembleConfig(method=method, models=models)  # type: ignore[arg-type]


def test_every_kind_of_place_is_a_member(tmp_path: Path, pages: Path, classes: list[str]) -> None:
    file = write_checkpoint(tmp_path / "a.ckpt", seed=1, classes=classes, data_dir=pages)
    best = write_checkpoint(tmp_path / "run/checkpoints/best_model.pth", seed=2, classes=classes, data_dir=pages)
    job = write_job(tmp_path / "job", seed=3, classes=classes, data_dir=pages)
    found = find_sources(listed(("", file), ("", best.parent.parent), ("folds", job)))
    assert [source.name for source in found] == ["tiny", "tiny_2", "folds"]  # made unique
    assert [len(source.parts) for source in found] == [1, 1, 2]
    assert found[1].parts[0].path == best
    assert [source.whole for source in found] == [False, False, True]
    assert len({part.name for source in found for part in source.parts}) == 4
    assert out_of_fold(found) is None  # not of all members


def test_a_run_gives_its_snapshots_and_a_job_its_folds(tmp_path: Path, pages: Path, classes: list[str]) -> None:
    for name in ("best_model", "latest_model", "epoch_0020", "epoch_0010"):
        write_checkpoint(tmp_path / f"run/checkpoints/{name}.pth", seed=1, classes=classes, data_dir=pages)
    found = find_sources(EnsembleConfig(run=tmp_path / "run"))
    assert [source.name for source in found] == ["tiny_epoch_0010", "tiny_epoch_0020"]
    job = write_job(tmp_path / "job", seed=3, classes=classes, data_dir=pages, folds=3)
    assert [source.name for source in find_sources(EnsembleConfig(run=job))] == [f"tiny_fold_{k}" for k in (1, 2, 3)]
    (together,) = find_sources(EnsembleConfig(run=job, method="stacking"))
    assert (len(together.parts), together.whole) == (3, True)


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ([], "resnet50"),
        (["model=convnext"], "convnext"),
        (["model.model_name=efficientnet_b0"], "efficientnet_b0"),
        (["model=convnext_with_attention", "model.model_name=models/convnext_small/"], "convnext_small"),
        (["+experiment=documents", "model.model_name=resnet34"], "resnet34"),
        (["--demo", "model.model_name=resnet18", "model.name=mine"], "mine"),
    ],
)
def test_a_model_is_called_what_it_is(given: list[str], title: str) -> None:
    assert parse(APP, ["--data_dir", "pages", *given]).config.model.title == title


def test_a_member_without_a_name_is_called_after_its_network(tmp_path: Path, pages: Path, classes: list[str]) -> None:
    file = write_checkpoint(tmp_path / "a.ckpt", seed=1, classes=classes, data_dir=pages, name="")
    assert [source.name for source in find_sources(listed(("", file)))] == ["test_resnet"]


def test_all_missing_members_are_told_together(tmp_path: Path, pages: Path, classes: list[str]) -> None:
    file = write_checkpoint(tmp_path / "there.ckpt", seed=1, classes=classes, data_dir=pages)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as told:
        find_sources(listed(("a", tmp_path / "none.ckpt"), ("b", file), ("c", tmp_path / "empty")))
    assert "2 of 3 members" in str(told.value)
    assert "a: " in str(told.value)
    assert "none.ckpt (no such file)" in str(told.value)
    assert "empty (a folder without checkpoints)" in str(told.value)
    assert "b: " not in str(told.value)


def test_a_job_that_is_not_finished_is_refused(tmp_path: Path, pages: Path, classes: list[str]) -> None:
    job = write_job(tmp_path / "job", seed=3, classes=classes, data_dir=pages)
    (job / "out_of_fold.npz").unlink()
    with pytest.raises(UserError, match="is not finished"):
        find_sources(EnsembleConfig(run=job))


def test_out_of_fold_predictions_of_jobs_become_one(tmp_path: Path, pages: Path, classes: list[str]) -> None:
    jobs = [write_job(tmp_path / f"job{k}", seed=k, classes=classes, data_dir=pages) for k in (1, 2)]
    together = out_of_fold(find_sources(listed(("a", jobs[0]), ("b", jobs[1]), method="stacking")))
    assert together is not None
    assert together.member_names == ("a", "b")
    assert len(together.pages) == len(set(together.pages)) == 102
    (alone,) = [out_of_fold(find_sources(listed(("x", jobs[1]))))]
    assert alone is not None
    where = {page: row for row, page in enumerate(alone.pages)}
    rows = [where[page] for page in together.pages]
    np.testing.assert_array_equal(together.probabilities[1], alone.probabilities[0, rows])
    other = write_job(tmp_path / "job3", seed=3, classes=classes, data_dir=pages, folds=3)  # other folds
    with pytest.raises(UserError, match="not cross-validated alike"):
        out_of_fold(find_sources(listed(("a", jobs[0]), ("c", other))))


def test_the_mean_of_parts_is_numpys() -> None:
    values = np.random.default_rng(0).random((6, 2, 3, 4), dtype=np.float32)
    means = mean_of_parts(values, [1, 3, 2])
    expected = [values[0], values[1:4].mean(axis=0, dtype=np.float64), values[4:].mean(axis=0, dtype=np.float64)]
    np.testing.assert_allclose(means, np.stack(expected), rtol=1e-12)
