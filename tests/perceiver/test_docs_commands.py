"""The app's page in docs/ is true: every command and every block of code on it is run as it stands there.

Commands are only made smaller, by flags put after them, and find tiny data where the page's paths point.
"""

import importlib
import pickle
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mlcore.config.compose import Request, compose
from quartet.apps.perceiver.app import APP
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.model import SIZES, create_perceiver_model
from scripts.flag_tables import BEGIN, flag_tables, insert_flag_tables
from tests.docs_page import Block, Page, commands, run_apart, run_script
from tests.perceiver.published import write_published

PAGE = Page("perceiver")
MODEL = "--d_model 16 --num_heads 2 --num_latents 4 --num_cross_attention_layers 1 --num_self_attention_layers 1"
SMALLER = f"{MODEL} --num_samples 40 --seq_len_range 5 9 --feature_dim 4 --num_classes 3 --epochs 1 --num_workers 0"
# Several processes each, or an export: `make test-all` has the time.
SLOW = {
    "Training": ("--dry_run", " -m ", "NPROC="),
    "Exporting": ("export",),
    "Tables with texts, images and series": ("--dataset manifest",),
    "Texts alone": ("--dataset text",),
    "Tables of series in long format": ("--dataset long",),
    "Tasks": ("--task regression", "--task per_step", "--task forecast"),
}

PROMISED = r"""
python apps/perceiver/example_usage.py
python apps/perceiver/train.py --dataset synthetic --epochs 10 --batch_size 16
python apps/perceiver/train.py --dataset synthetic --model_size base --epochs 50
python apps/perceiver/train.py --dataset cifar10 --model_size small --epochs 100 --lr 1e-4
python apps/perceiver/train.py --dataset cifar10 --model_size large --batch_size 64 --epochs 200 --lr 2e-4 \
    --config config.json
python apps/perceiver/inference.py --model_path checkpoints/best_model.pth
python apps/perceiver/inference.py --model_path checkpoints/best_model.pth --analyze --output_dir results/
"""


COMMANDS = [(block.heading, command) for block in PAGE.blocks("bash") for command in commands(block.text)]


def is_slow(command: str) -> bool:
    return any(mark in command for marks in SLOW.values() for mark in marks)


def shrunk(arguments: list[str]) -> list[str]:
    script = Path(arguments[0]).name
    if script == "example_usage.py":
        return [*arguments, "--quick"]
    if script != "train.py" or {"--test", "--cfg"} & set(arguments):
        return arguments
    smaller = shlex.split(SMALLER)
    if "image_folder" in arguments:
        smaller += ["--image_size", "16"]
    if any("japanese_vowels" in word for word in arguments):
        smaller += ["--folds", "2", "--seeds", "1"]
    return [*arguments, *smaller]


# ------------------------------------------------------------------------------------------------------ the workplace


def series(rng: np.random.Generator, count: int) -> dict[str, Any]:
    lengths = rng.integers(5, 9, size=count)
    inputs = rng.standard_normal((int(lengths.sum()), 4)).astype(np.float32)
    return {"inputs": inputs, "lengths": lengths, "labels": np.arange(count) % 2}


def write_ts(path: Path, rng: np.random.Generator, count: int) -> None:
    lines = ["@problemName Tiny", "@univariate false", "@dimensions 4", "@classLabel true a b", "@data"]
    for index in range(count):
        values = rng.standard_normal((4, int(rng.integers(5, 9))))
        lines.append(":".join([*(",".join(f"{x:.3f}" for x in row) for row in values), "ab"[index % 2]]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_image(path: Path, rng: np.random.Generator, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, size=(side, side, 3), dtype=np.uint8)).save(path)


def write_cifar(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = rng.integers(0, 256, size=(20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({b"data": data, b"labels": [i % 10 for i in range(20)]}))
    names = [f"class{number}".encode() for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the page's paths name."""
    root, rng = tmp_path_factory.mktemp("workplace"), np.random.default_rng(0)
    write_cifar(root / "data" / "cifar-10-batches-py", rng)
    for part in ("TRAIN", "TEST"):
        write_ts(root / "data" / "JapaneseVowels" / f"JapaneseVowels_{part}.ts", rng, 12)
    for label in ("cat", "dog"):
        for number in range(5):
            write_image(root / "photos" / label / f"{number}.png", rng)
            (root / "texts" / label).mkdir(parents=True, exist_ok=True)
            (root / "texts" / label / f"{number}.txt").write_text(f"a {label}")
        for part in ("train", "test"):
            write_image(root / "data" / "cifar10" / part / label / "0.png", rng)
    write_published(root / "language-perceiver")
    rows = [f"photos/{label}/{number}.png,a {label},{label}" for label in ("cat", "dog") for number in range(5)]
    (root / "pages.csv").write_text("\n".join(["image,text,label", *rows]))
    for path in (root / "new_photos" / "a.png", root / "new_photos" / "b.png", root / "one_more.jpg"):
        write_image(path, rng, side=20)
    for name in ("train", "test", "new", "more"):
        np.savez(root / f"{name}.npz", **series(rng, 12))
    given = series(rng, 12)
    np.savez(root / "segments.npz", **given | {"labels": np.arange(len(given["inputs"])) % 2})
    given["targets"] = given.pop("labels") / 2
    np.savez(root / "levels.npz", **given)
    sensors = [
        {"machine": k, "at": k + step, "speed": step, "state": "ab"[k % 2]} for k in range(12) for step in range(7)
    ]
    parquet.write_table(pa.Table.from_pylist(sensors), root / "sensors.parquet")
    np.savez(root / "demand.npz", inputs=rng.standard_normal((12, 130, 1)))
    write_ts(root / "new.ts", rng, 3)
    (config,) = PAGE.blocks("json")
    (root / "config.json").write_text(config.text)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        for folder, data in ((".", "--dataset synthetic"), ("photos_run", "--dataset image_folder --data_dir photos")):
            run_script(
                ["apps/perceiver/train.py", *f"{data} --output_dir {folder} --no_tensorboard {SMALLER}".split()],
                monkeypatch,
            )
    return root


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


# ---------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("heading", dict.fromkeys(heading for heading, command in COMMANDS if not is_slow(command)))
def test_commands_run(heading: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (command for place, command in COMMANDS if place == heading and not is_slow(command)):
        run_script(shrunk(PAGE.as_python(command)), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for _, command in COMMANDS if is_slow(command)])
def test_commands_of_several_processes_run(command: str, there: Path) -> None:
    run_apart(shrunk(PAGE.as_python(command)), processes=2 if "NPROC=2" in command else 1)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.heading, marks=pytest.mark.slow if block.heading in SLOW else [])
        for block in PAGE.blocks("python")
    ],
)
def test_python_blocks_run(block: Block, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "exported/" in block.text and not Path("exported").exists():
        (command,) = [command for heading, command in COMMANDS if heading == block.heading and "exported/" in command]
        run_script(PAGE.as_python(command), monkeypatch)
    PAGE.execute(block)


@pytest.mark.parametrize("block", [*PAGE.blocks("json"), *PAGE.blocks("yaml")], ids=lambda block: block.language)
def test_configuration_files_fit_the_typed_model(block: Block, tmp_path: Path) -> None:
    file = tmp_path / f"config.{block.language}"
    file.write_text(block.text)
    config = compose(PerceiverConfig, APP.config_dir, Request(files=[file]), environ={}).config
    assert config.train.epochs == 100


def test_everything_promised_is_on_the_page() -> None:
    there = {" ".join(shlex.split(command)) for _, command in COMMANDS}
    assert set(commands(PROMISED)) <= there


def test_the_table_of_flags_is_up_to_date() -> None:
    expected = insert_flag_tables(PAGE.path, APP)
    assert PAGE.text() == expected, "run scripts/flag_tables.py"
    assert BEGIN in expected
    assert "| `--lr` | `0.0001` |" in flag_tables(APP)


@pytest.mark.parametrize("name", SIZES)
def test_the_table_of_sizes_is_true(name: str) -> None:
    size = SIZES[name]
    model = create_perceiver_model(input_dim=32, num_classes=10, model_size=name)  # type: ignore[arg-type]
    layers = f"{size.num_cross_attention_layers} / {size.num_self_attention_layers}"
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    row = f"| `{name}` | {size.d_model} | {size.num_heads} | {size.num_latents} | {layers} | {count:.1f} M |"
    assert row in PAGE.text()


def test_a_run_leaves_what_the_page_lists(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script(["apps/perceiver/train.py", *f"--dataset synthetic --output_dir listed {SMALLER}".split()], monkeypatch)
    (listing,) = PAGE.blocks("text")
    names = [line.split()[0] for line in listing.text.splitlines()]
    listed = {f"checkpoints/{name}" if name.endswith(".pth") else name.rstrip("/") for name in names}
    run = there / "listed"
    left = {str(path.relative_to(run)) for path in (*run.iterdir(), *(run / "checkpoints").iterdir())}
    assert listed <= left
    assert {name for name in left - listed if not name.startswith("checkpoints/step_")} == {"run.lock"}


def test_links_inside_the_page_lead_somewhere() -> None:
    assert PAGE.broken_links() == set()


def test_scripts_beside_the_app_find_models_and_loaders_under_their_first_names(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(repository / "apps" / "perceiver")
    assert importlib.import_module("perceiver_model").create_perceiver_model is create_perceiver_model
    loader = importlib.import_module("data_utils").create_synthetic_sequence_dataloader(batch_size=2, num_samples=2)
    assert next(iter(loader))["input"].shape[::2] == (2, 64)
