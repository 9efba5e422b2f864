"""The app's page in docs/ is true: every command and every block of code on it is run as it stands there.

Commands are only made smaller, by settings put after them, and find a small generated set where the page's paths point.
Networks are timm's tiny ones, and published weights those of a folder. The examples run in `test_examples.py`.
"""

import csv
import fnmatch
import re
import shutil
from pathlib import Path

import pytest
import timm
import yaml
from PIL import Image

from mlcore.cli.parse import parse
from mlcore.config.compose import Request, compose
from quartet.apps.doc_ensemble.app import APP, ENSEMBLE
from quartet.apps.doc_ensemble.class_metrics import class_report, format_class_summary
from quartet.apps.doc_ensemble.config import DocConfig
from quartet.apps.doc_ensemble.data.folders import read_folders
from quartet.apps.doc_ensemble.data.generated import write_generated
from quartet.apps.doc_ensemble.data.pages import Page as DocumentPage
from tests.docs_page import Block, Page, commands, run_apart, run_script

PAGE = Page("doc_ensemble")
FIRST = "outputs/doc_ensemble/first"
ONCE = f"--output_dir {FIRST}"  # trained once, for all tests
SCRIPT = "run_ensemble_experiment.py"
HERE = "--num_threads 1 --device cpu"
SMALLER = (
    f"{HERE} --num_workers 0 --epochs 1 --max_steps 2 --num_train 34 --num_val 17 --num_test 17"
    " model.pretrained=false model.image_size=[32,32]"
)
CYCLES = "--epochs 2 --max_steps 4 scheduler.T_0=1 checkpoint.keep_every_epochs=1"
# Processes of their own, because they start several.
APART = (" -m ", "NPROC=")
# Of the shell and of the container engine.
NOT_OURS = ("cp ", "docker ", "make docker ")
# Whose commands build on each other.
IN_ORDER = ("Cross-validation", "Stacking", "Snapshots")

PROMISED = """
cp env_example.txt .env
python apps/doc_ensemble/run_experiment.py
python apps/doc_ensemble/run_ensemble_experiment.py
python apps/doc_ensemble/example_env_usage.py
python apps/doc_ensemble/example_scheduler_usage.py
python apps/doc_ensemble/example_class_metrics_usage.py
python apps/doc_ensemble/example_convnext_usage.py
python apps/doc_ensemble/example_ensemble_usage.py
python apps/doc_ensemble/run_experiment.py scheduler=cosine
python apps/doc_ensemble/run_experiment.py scheduler=step
python apps/doc_ensemble/run_experiment.py scheduler=warmup_cosine
python apps/doc_ensemble/run_experiment.py scheduler=cosine_warm_restart
python apps/doc_ensemble/run_experiment.py model=convnext
python apps/doc_ensemble/run_experiment.py model=convnext_small
python apps/doc_ensemble/run_experiment.py model=convnext_base
python apps/doc_ensemble/run_experiment.py model=convnext_large
python apps/doc_ensemble/run_experiment.py model=convnext_with_attention
python apps/doc_ensemble/run_experiment.py model=convnext_with_focal
make train APP=doc_ensemble
"""


def runs(command: str) -> bool:
    """Whether it trains or evaluates."""
    script, *arguments = PAGE.as_python(command)
    return script.endswith(("experiment.py", "train.py")) and not {"--test", "--cfg"} & set(arguments)


def of_section(block: Block) -> list[str]:
    return [command for command in commands(block.text) if not command.startswith(NOT_OURS)]


EVERYTHING = list(dict.fromkeys(command for block in PAGE.blocks("bash") for command in commands(block.text)))
SEQUENCES = {
    heading: [command for block in PAGE.blocks("bash") if block.heading == heading for command in of_section(block)]
    for heading in IN_ORDER
}
COMMANDS = [
    command
    for command in EVERYTHING
    if not command.startswith(NOT_OURS) and not any(command in sequence for sequence in SEQUENCES.values())
]
OUTSIDE = [
    command
    for command in COMMANDS
    if ONCE not in command and "ensemble.yaml" not in command and "/example_" not in command
]
QUICK = [command for command in OUTSIDE if not runs(command)]
SLOW = [command for command in OUTSIDE if command not in QUICK]


def smaller(command: str) -> list[str]:
    """The command with what makes it small after it."""
    script, *arguments = PAGE.as_python(command)
    if not runs(command):
        return [script, *arguments]
    if "--config" in arguments or "ensemble.run" in command:
        return [script, *arguments, *HERE.split()]
    small = [*SMALLER.split(), f"model.model_name=test_{'convnext' if 'convnext' in command else 'resnet'}"]
    if "kfold.folds" in command or script.endswith(SCRIPT):
        small.append("kfold.folds=2")
    if "snapshots" in command:
        small += CYCLES.split()
    return [script, *arguments, *small]


# ------------------------------------------------------------------------------------------------------ the workplace


def write_tables(root: Path) -> None:
    """train.csv, val.csv, test.csv of the pages in folders; pages to classify, a PDF file among them."""
    found = read_folders(root / "pages")
    splits: dict[str, list[DocumentPage] | None] = {"train": found.train, "val": found.val, "test": found.test}
    for split, pages in splits.items():
        with (root / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("image", "label"))
            table.writerows((page.path.relative_to(root), found.classes[page.label or 0]) for page in pages or [])
    (root / "scans").mkdir()
    with Image.open(found.train[0].path) as picture:
        for name in ("page.png", "scan.pdf", "scans/one.tif"):
            picture.save(root / name)


def yaml_block(heading: str, place: int = 0) -> Block:
    return [block for block in PAGE.blocks("yaml") if block.heading == heading][place]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page's paths name, trained models among them."""
    root = tmp_path_factory.mktemp("workplace")
    write_generated(root / "pages", train=34, val=17, test=17, seed=0)
    write_tables(root)
    (root / "ensemble.yaml").write_text(yaml_block("Ensembles").text, encoding="utf-8")
    (root / "stacking.yaml").write_text(yaml_block("Stacking").text, encoding="utf-8")
    tiny = timm.create_model("test_convnext", num_classes=5)
    timm.models.save_for_hf(
        tiny, str(root / "models/convnext"), model_config={"num_classes": 5}, safe_serialization=True
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        (command,) = (command for command in COMMANDS if ONCE in command)
        run_script(smaller(command), monkeypatch)
    (root / "checkpoints").mkdir()
    for name in re.findall(r'"(checkpoints/\w+\.ckpt)"', PAGE.text()):
        shutil.copy(root / FIRST / "checkpoints" / "best_model.pth", root / name)
    return root


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


# ------------------------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize(
    "command", [*filter(runs, COMMANDS), *(command for part in SEQUENCES.values() for command in part)]
)
def test_commands_parse(command: str, there: Path) -> None:
    script, *arguments = PAGE.as_python(command)
    parse(ENSEMBLE if script.endswith(SCRIPT) else APP, arguments)


@pytest.mark.parametrize("command", QUICK)
def test_commands_run(command: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script(smaller(command), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_commands_that_take_longer_run(command: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(mark in command for mark in APART):
        run_apart(smaller(command), processes=2 if "NPROC=2" in command else 1)
    else:
        run_script(smaller(command), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("heading", IN_ORDER)
def test_commands_that_build_on_each_other_run(heading: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(SEQUENCES[heading]) >= 2
    for command in SEQUENCES[heading]:
        run_script(smaller(command), monkeypatch)
    if heading == "Cross-validation":
        listed = {name.split()[0].rstrip(",") for name in listing(heading) if not name.startswith("folds/")}
        assert listed <= names_in(there / "outputs/doc_ensemble/folds")


def test_everything_promised_is_on_the_page() -> None:
    assert set(commands(PROMISED)) <= set(EVERYTHING)


# --------------------------------------------------------------------------------------------------------- the blocks


@pytest.mark.parametrize("place", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["voting", "weighted"])
def test_the_ensembles_on_the_page_run(
    place: int, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one on the page is that of a command, which the last test runs."""
    run_block(yaml_block("Ensembles", place + 1), tmp_path, monkeypatch, HERE)
    left = tmp_path / "run" / "ensemble_predictions_meta.json"
    assert f'"method": "{("voting", "weighted")[place]}"' in left.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_views_on_the_page_run(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names no members: those of a cross-validation are trained first."""
    small = f"{SMALLER} model.model_name=test_resnet kfold.folds=2 --data_dir pages"
    run_block(yaml_block("Test-time augmentation"), tmp_path, monkeypatch, small)
    with (tmp_path / "run" / "views.csv").open(encoding="utf-8", newline="") as file:
        found = [row["view"] for row in csv.DictReader(file)]
    views = ["original", "horizontal_flip", "brightness_1.1", "brightness_0.9", "contrast_1.1", "contrast_0.9"]
    assert found == [*views, "all of them"]


def run_block(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch, settings: str) -> None:
    """An ensemble experiment of a block of YAML."""
    (folder / "mine.yaml").write_text(block.text, encoding="utf-8")
    command = ["--config", str(folder / "mine.yaml"), *settings.split(), "--output_dir", str(folder / "run")]
    run_script([f"apps/doc_ensemble/{SCRIPT}", *command], monkeypatch)


@pytest.mark.parametrize("block", PAGE.blocks("yaml"), ids=lambda block: f"{block.heading}: {block.text[:60]!r}")
def test_configuration_files_fit_the_typed_model(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(block.text, encoding="utf-8")
    config = compose(DocConfig, APP.config_dir, Request(files=[file], base=ENSEMBLE.base), environ={}).config
    ((section, given),) = yaml.safe_load(block.text).items()
    made = getattr(config, section).model_dump(mode="json")
    if section == "scheduler":
        given = given | given.pop("params", {})
        name = given.pop("_target_", given.get("name"))
        assert made["name"].replace("_", "") == name.rpartition(".")[2].removesuffix("Scheduler").lower().replace(
            "_", ""
        )
    if section == "ensemble":
        assert [member["name"] for member in made["models"]] == [member["name"] for member in given.pop("models", [])]
        if "tta" in given:
            types = [view["type"] for view in given.pop("tta")["augmentations"]]
            assert [view["type"] for view in made["tta"]["augmentations"]] == types
    assert {key: made[key] for key in given} == given


@pytest.mark.parametrize("block", PAGE.blocks("python"), ids=lambda block: f"{block.heading}: {block.text[:90]!r}")
def test_blocks_of_python_run(block: Block, there: Path) -> None:
    PAGE.execute(block._replace(text=block.text.replace('"convnext_tiny"', '"models/convnext"')))


def test_the_summary_on_the_page_is_the_one_that_is_printed() -> None:
    (block,) = (block for block in PAGE.blocks("text") if block.heading == "Figures of each class")
    report = class_report([[2.0, 1.0], [1.0, 2.0]], labels=[0, 1], class_names=["class_0", "class_1"])

    def without_figures(text: str) -> list[str]:
        return [re.sub(r"[0-9]+(\.[0-9]+)? *", "0 ", line).rstrip() for line in text.splitlines()]

    assert without_figures(block.text)[:9] == without_figures(format_class_summary(report))[:9]


def test_the_columns_on_the_page_are_those_that_are_read() -> None:
    (block,) = PAGE.blocks("csv")
    assert block.text.splitlines()[0] == "image,label,group"


# ---------------------------------------------------------------------------------------------------------- the files


def listing(heading: str) -> list[str]:
    (block,) = (block for block in PAGE.blocks("text") if block.heading == heading)
    return block.text.splitlines()


def names_in(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in (*run.iterdir(), *run.glob("checkpoints/*"))}


def test_a_run_leaves_what_the_page_lists(there: Path) -> None:
    names = [line.split()[0] for line in listing("What a run leaves")]
    listed = {f"checkpoints/{name}" if name.endswith("_model.pth") else name.rstrip("/") for name in names}
    left = names_in(there / FIRST)
    assert listed - {"confused_pairs.png"} <= left
    of_test = {f"test_{name.removeprefix('val_')}" for name in listed}
    assert {name for name in left - listed if not fnmatch.fnmatch(name, "checkpoints/step_*")} <= of_test | {"run.lock"}


def test_an_ensemble_leaves_what_the_page_lists(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = (command for command in COMMANDS if "ensemble.yaml" in command)
    run_script([*smaller(command), "--output_dir", str(tmp_path / "run")], monkeypatch)
    listed = {line.split()[0] for line in listing("What an ensemble leaves")}
    left = names_in(tmp_path / "run")
    assert (
        listed - {"confused_pairs.png", "stacking.json", "tta_predictions.csv"} <= left
    )  # each where there is something
    of_test = {f"test_{name.removeprefix('val_')}" for name in listed}
    assert left - listed <= of_test | {"run.lock"}
