"""Copies of a page are one unit of every split, pages are known by their content, and seeds share their splits."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.build import build
from quartet.apps.doc_ensemble.config import DataConfig, DocConfig, EnsembleConfig, MemberConfig
from quartet.apps.doc_ensemble.data.generated import draw_page
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.data.split import fold_numbers
from quartet.apps.doc_ensemble.ensemble.methods import halves
from quartet.apps.doc_ensemble.ensemble.out_of_fold import FoldPredictions, gather, join_members
from quartet.apps.doc_ensemble.ensemble.sources import find_sources, trained_on
from quartet.apps.doc_ensemble.restore import CheckpointMember
from quartet.apps.doc_ensemble.splits import Splits, load_splits
from tests.doc_ensemble.conftest import Run
from tests.doc_ensemble.tiny_runs import write_checkpoint

KINDS = ("letter", "form")
PAGES = 6  # of each class; each is there again as it is, and smaller and compressed anew


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of classes in which every page is there three times."""
    folder = tmp_path_factory.mktemp("copied")
    for place, kind in enumerate(KINDS):
        (folder / kind).mkdir()
        for number in range(PAGES):
            page = draw_page(kind, np.random.default_rng([place, number]))
            page.save(folder / kind / f"{number}_original.png")
            page.save(folder / kind / f"{number}_renamed.bmp")  # other bytes, the same pixels
            small = page.resize((round(0.8 * page.width), round(0.8 * page.height)))
            small.save(folder / kind / f"{number}_small.jpg", quality=70)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what is known of pages is kept in the folder that is worked in


def split(folder: Path, *, seed: int = 0, split_seed: int = 0) -> Splits:
    data = {"data_dir": folder, "split_seed": split_seed, "val_fraction": 0.4}
    return load_splits(DocConfig.model_validate({"data": data, "run": {"seed": seed}}))


def originals(pages: Sequence[Page]) -> set[tuple[str, str]]:
    return {(page.path.parent.name, page.path.name.split("_")[0]) for page in pages}


def test_copies_are_never_torn_by_a_held_out_part(copied: Path) -> None:
    for split_seed in range(5):
        parts = split(copied, split_seed=split_seed)  # an error if pages were in both
        assert len(parts.train) + len(parts.validation) == 3 * PAGES * len(KINDS)
        assert not originals(parts.train) & originals(parts.validation)


def test_copies_are_never_torn_by_folds_and_halves(copied: Path) -> None:
    parts = split(copied)
    pages = [*parts.train, *parts.validation]
    for seed in range(3):
        numbers = fold_numbers(pages, folds=3, seed=seed, classes=KINDS)
        half = halves(pages, seed=seed)
        assert len(set(numbers.tolist())) == 3
        assert 0 < half.sum() < len(pages)
        for dealt in (numbers, half):
            assert len({(key, int(n)) for page, n in zip(pages, dealt, strict=True) for key in originals([page])}) == 12


def test_copies_are_never_torn_by_the_runs_of_a_protocol(copied: Path) -> None:
    """Nor is a page missing: every page is held out once, and the last run has all of them."""

    def member(fold: int) -> Splits:
        values = {"data": {"data_dir": copied}, "protocol": {"folds": 3, "inner": 2, "fold": fold}}
        return load_splits(DocConfig.model_validate(values))

    held_out = list[Page]()
    for fold in (1, 2, 3):
        parts = [originals(pages) for pages in member(fold).named().values()]
        assert len(parts) == 3
        assert sum(map(len, parts)) == len(set.union(*parts)) == PAGES * len(KINDS)
        held_out += member(fold).test or ()
    assert len({page.key for page in held_out}) == len(held_out) == 3 * PAGES * len(KINDS)
    last = member(0)
    assert (len(last.train), len(last.validation), last.test) == (len(held_out), 0, None)


def test_copies_join_groups(tmp_path: Path, copied: Path) -> None:
    names = ["0_original.png", "1_original.png", "1_small.jpg", "2_original.png", "3_original.png"]
    rows = [f"{copied}/{kind}/{name},{kind},{kind}{number // 2}" for kind in KINDS for number, name in enumerate(names)]
    table = tmp_path / "pages.csv"
    table.write_text("\n".join(["image,label,group", *rows]), encoding="utf-8")
    data = DataConfig(train_csv=table, val_fraction=0.3)
    parts = load_splits(DocConfig(data=data))
    units = {page.path: page.unit for page in (*parts.train, *parts.validation)}
    # 0 and 1 have one group; 1's copy has another, and so has 2.
    assert len({units[copied / "form" / name] for name in names}) == 2
    assert len(set(units.values())) == 4


def test_the_split_follows_its_own_seed(copied: Path) -> None:
    parts = [split(copied, seed=seed) for seed in (0, 1)]
    assert parts[0] == parts[1]
    assert split(copied, split_seed=1).validation != parts[0].validation


def test_folds_of_several_seeds_are_the_same(pages: Path) -> None:
    """So that cross-validations of several seeds can be stacked together."""

    def held_out(**seeds: dict[str, object]) -> list[Path]:
        model = {"model_name": "test_resnet", "pretrained": False, "image_size": (64, 48), "in_channels": 1}
        data = {"data_dir": pages} | seeds.pop("data", {})
        values = {"data": data, "model": model, "kfold": {"folds": 3, "fold": 2}, **seeds}
        config = DocConfig.model_validate(values)
        return [page.path for page in build(config, World(device=torch.device("cpu"))).validation.dataset.pages]  # type: ignore[attr-defined]

    first = held_out(run={"seed": 0})
    assert held_out(run={"seed": 1}) == first != held_out(data={"split_seed": 1})


def test_copies_in_given_splits_are_still_refused(tmp_path: Path, copied: Path) -> None:
    shutil.copytree(copied, tmp_path / "given/train")
    for kind in KINDS:
        (tmp_path / "given/test" / kind).mkdir(parents=True)
        page = Image.open(copied / kind / "0_original.png")
        page.save(tmp_path / "given/test" / kind / "scan.png", optimize=True)
    with pytest.raises(UserError, match="pictures in more than one of train, val, test"):
        split(tmp_path / "given")


# -------------------------------------------------------------------------------------------------- what was trained on


def member(tmp_path: Path, pages: Path, digests: Sequence[str] | None, *, seed: int = 0) -> EnsembleConfig:
    classes = sorted(path.name for path in (pages / "train").iterdir())
    path = write_checkpoint(
        tmp_path / "m.ckpt", seed=seed, classes=classes, data_dir=pages, trained_on=digests, run_seed=seed
    )
    return EnsembleConfig(models=(MemberConfig(name="tiny", checkpoint_path=str(path)),))


def test_pages_trained_on_are_known_by_their_content(tmp_path: Path, pages: Path, run: Run) -> None:
    """The training pages come again under another path, saved anew; the checkpoint knows them."""
    digests = [page.digest for page in load_splits(DocConfig(data=DataConfig(data_dir=pages))).train]
    settings = member(tmp_path, pages, digests)
    assert trained_on(find_sources(settings)) == {"tiny": set(digests)}
    again = tmp_path / "again"
    shutil.copytree(pages / "test", again / "train")
    for number, path in enumerate(sorted((pages / "train").rglob("*.jpg"))):
        place = again / "val" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(place / f"scan {number}.png")
    code, said = run("run_ensemble_experiment", "--output_dir", tmp_path / "out", "--data_dir", again,
                     f"ensemble.models=[{{name: tiny, checkpoint_path: {tmp_path / 'm.ckpt'}}}]")  # fmt: skip
    assert code == 0, said
    assert "'tiny' was trained on 102 of the 102 evaluated pages" in said


def test_an_older_checkpoint_was_split_by_the_trainings_seed(tmp_path: Path, copied: Path) -> None:
    shutil.copytree(copied, tmp_path / "old/train")
    settings = member(tmp_path, tmp_path / "old", None, seed=3)
    part = CheckpointMember("tiny", tmp_path / "m.ckpt")
    assert (part.trained_on, part.config.data.split_seed) == (None, 3)
    expected = load_splits(part.config)
    assert trained_on(find_sources(settings)) == {"tiny": {page.digest for page in expected.train}}
    assert not {page.digest for page in expected.validation} & {page.digest for page in expected.train}


def fold(number: int, names: Sequence[str], *, known: Sequence[str], trained: Sequence[str]) -> FoldPredictions:
    chances = np.full((len(names), 2), 0.5)
    return FoldPredictions(
        member="m",
        fold=number,
        trained_on=trained,
        pages=names,
        probabilities=chances,
        labels=np.zeros(len(names), dtype=np.int64),
        digests=known,
    )


def test_a_copy_in_another_folds_training_pages_is_a_leak() -> None:
    parts = [
        fold(1, ["a.png#1", "b.png#1"], known=["A", "B"], trained=["C", "A"]),
        fold(2, ["c.png#1", "copy_of_a.png#1"], known=["C", "A"], trained=["B"]),
    ]
    with pytest.raises(UserError, match=r"for fold 1 was trained on 1 of the pages .* 'a\.png#1'"):
        gather(parts, class_names=("x", "y"))


def test_members_of_one_data_set_fit_together_however_its_paths_are_spelled(tmp_path: Path) -> None:
    jobs = []
    for folder in ("/data/pages", "pages"):
        names = [f"{folder}/{name}.png#1" for name in ("a", "b", "c", "d")]
        halves_of = [fold(1, names[:2], known="AA", trained="CD"), fold(2, names[2:], known="CD", trained="AA")]
        jobs.append(gather(halves_of, class_names=("x", "y")))
        jobs[-1].save(tmp_path / f"{len(jobs)}.npz")
    together = join_members(jobs, member_names=("one", "two"))
    assert together.pages == tuple(f"/data/pages/{name}.png#1" for name in "abcd")
    assert together.digests == ("A", "A", "C", "D")
    assert together.probabilities.shape == (2, 4, 2)
