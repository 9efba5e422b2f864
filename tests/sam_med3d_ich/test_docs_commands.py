"""The app's page in docs/ is true: every command and every block of code on it is run as it stands there.

Commands are only made smaller, by flags put after them, and find tiny generated scans where the page's paths point.
"""

import csv
import fnmatch
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from mlcore.cli.parse import parse
from mlcore.config.compose import Request, compose
from quartet.apps.sam_med3d_ich.app import APP
from quartet.apps.sam_med3d_ich.config import SamMed3DConfig
from quartet.apps.sam_med3d_ich.data.phantoms import make_head, write_phantoms
from quartet.apps.sam_med3d_ich.data.table import COLUMNS
from quartet.apps.sam_med3d_ich.data.volume import write_nifti
from quartet.apps.sam_med3d_ich.model.sam import PRESETS
from scripts.flag_tables import BEGIN, flag_tables, insert_flag_tables
from tests.docs_page import Block, Page, commands, run_apart, run_script

PAGE = Page("sam_med3d_ich")
SHAPE, SPACING = (32, 32, 16), (6.0, 6.0, 10.0)
SMALLER = (
    "--model_type vit_tiny --image_size 16 --weights none --spacing 12 12 12 --max_steps 2 --num_workers 0"
    " --device cpu --cache_dir cache --phantom_dir phantoms --num_train 3 --num_val 3 --wandb_mode offline"
)
BASIC, CLICKS = "--output_dir ./outputs --epochs", "--output_dir outputs/clicks"  # trained once, for all tests
# Processes of their own, because they start several or set up what a test process cannot take back.
APART = ("NPROC=", "--use_wandb", "--language_model")

PROMISED = r"""
python apps/sam_med3d_ich/train.py --train_csv data/train.csv --val_csv data/val.csv --mask_dir data/masks \
    --output_dir ./outputs --epochs 200 --batch_size 2 --lr 1e-4
python apps/sam_med3d_ich/train.py --train_csv data/train.csv --val_csv data/val.csv --mask_dir data/masks \
    --output_dir ./outputs/advanced --epochs 200 --batch_size 2 --lr 1e-4 --use_mixed_precision \
    --gradient_accumulation_steps 4 --scheduler_type cosine --use_wandb --wandb_project my-sam-med3d --freeze_encoder
python apps/sam_med3d_ich/train.py --test
"""


COMMANDS = [command for block in PAGE.blocks("bash") for command in commands(block.text)]


def trains(command: str) -> bool:
    return "/train.py" in PAGE.as_python(command)[0] and not {"--test", "--cfg"} & set(shlex.split(command))


TRAININGS = [command for command in COMMANDS if trains(command)]
ONCE = [command for command in TRAININGS if BASIC in command or CLICKS in command]
QUICK = [command for command in COMMANDS if not trains(command) and not any(mark in command for mark in APART)]
SLOW = [command for command in COMMANDS if command not in QUICK and command not in ONCE]


# ------------------------------------------------------------------------------------------------------ the workplace


def write_scans(root: Path) -> None:
    """NIfTI scans and label maps in the layouts that the page shows, as files of 32 x 32 x 16 voxels."""
    affine = np.diag([*SPACING, 1.0])
    names = ["P01_1", "P01_2", *(f"P{number:02d}_1" for number in range(2, 7))]
    for number, name in enumerate(names):
        head = make_head(np.random.default_rng(number), bleeds=number % 3 > 0, shape=SHAPE, spacing=SPACING)
        nnunet = root / "nnUNet_raw/Dataset042_Bleeds"
        for path, array in (
            (root / f"dataset/images/{name}.nii.gz", head.image),
            (root / f"dataset/labels/{name}.nii.gz", head.mask),
            (nnunet / f"imagesTr/{name}_0000.nii.gz", head.image),
            (nnunet / f"labelsTr/{name}.nii.gz", head.mask),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(path, array, like_affine=affine)
        for path in (root / "scan.nii.gz", root / "scans/first.nii.gz", root / "scans/second.nii"):
            path.parent.mkdir(exist_ok=True)
            write_nifti(path, head.image, like_affine=affine)
    (root / "arrays").mkdir()
    np.save(root / "arrays/good.npy", head.image)


def write_dicom(folder: Path, array: np.ndarray, *, uid: str) -> None:
    """A series of slices 5 mm apart."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(array.shape[2]):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array[:, :, z].T[None].astype(np.int16)))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{z + 1}",
            "0008|0060": "CT",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0032": f"0\\0\\{5 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{z}.dcm"))
        writer.Execute(image)


def write_dicom_cases(root: Path) -> None:
    """Three cases; the second also has a scout of two slices."""
    (root / "dicom_masks").mkdir()
    for number in range(3):
        array = np.random.default_rng(number).integers(-50, 90, size=(8, 8, 6))
        folder = root / f"dicom/case{number}"
        write_dicom(folder, array, uid=f"1.2.{number}.1")
        if number == 1:
            write_dicom(folder / "scout", array[:, :, :2], uid="1.2.1.2")
        mask = np.zeros(array.shape, dtype=np.uint8)
        mask[2:4, 2:4, 2:4] = 1
        affine = np.diag([-1.0, -1.0, 5.0, 1.0])
        write_nifti(root / f"dicom_masks/case{number}.nii.gz", mask, like_affine=affine)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page's paths name, trained models among them."""
    root = tmp_path_factory.mktemp("workplace")
    write_phantoms(root / "data", train=4, validation=4, seed=0, shape=SHAPE, spacing=SPACING)
    write_scans(root)
    write_dicom_cases(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        prepare = next(command for command in COMMANDS if "--output prepared" in command)
        run_script(PAGE.as_python(prepare), monkeypatch)
        for command in ONCE:
            run_script([*PAGE.as_python(command), *SMALLER.split()], monkeypatch)
    return root


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


def fresh(arguments: list[str], place: Path) -> list[str]:
    """The same with room for its output: trainings go to a new folder, prepared data are made again."""
    if arguments[0].endswith("train.py") and not {"--test", "--cfg"} & set(arguments):
        warmup = ["scheduler.warmup_steps=1"] if "warmup" in " ".join(arguments) else []  # shorter than the run
        return [*arguments, *SMALLER.split(), *warmup, "--output_dir", str(place)]
    if arguments[0].endswith("prepare.py"):
        shutil.rmtree(arguments[arguments.index("--output") + 1], ignore_errors=True)
    return arguments


# ---------------------------------------------------------------------------------------------------------- the tests


def test_the_two_trainings_are_on_the_page() -> None:
    assert len(ONCE) == 2


@pytest.mark.parametrize("command", [command for command in COMMANDS if "/train.py" in PAGE.as_python(command)[0]])
def test_training_commands_parse(command: str) -> None:
    parse(APP, PAGE.as_python(command)[1:])


@pytest.mark.parametrize("command", QUICK)
def test_commands_run(command: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script(fresh(PAGE.as_python(command), there), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_commands_that_take_longer_run(
    command: str, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = fresh(PAGE.as_python(command), tmp_path / "run")
    if "--language_model" in command and not Path("opt-125m").exists():
        from quartet.apps.sam_med3d_ich.answering import demo_language

        language = demo_language()
        language.model.save_pretrained("opt-125m")
        language.tokenizer.save_pretrained("opt-125m")
    if any(mark in command for mark in APART):
        run_apart(arguments, processes=2 if "NPROC=2" in command else 1)
    else:
        run_script(arguments, monkeypatch)


@pytest.mark.parametrize("block", PAGE.blocks("python"), ids=lambda block: block.heading)
def test_python_blocks_run(block: Block, there: Path) -> None:
    PAGE.execute(block)


def test_the_configuration_file_fits_the_typed_model(tmp_path: Path) -> None:
    (block,) = PAGE.blocks("yaml")
    file = tmp_path / "config.yaml"
    file.write_text(block.text)
    config = compose(SamMed3DConfig, APP.config_dir, Request(files=[file]), environ={}).config
    assert (config.train.epochs, config.data.window, config.scheduler.name) == (100, "subdural", "cosine")


def test_everything_promised_is_on_the_page() -> None:
    there = {" ".join(shlex.split(command)) for command in COMMANDS}
    assert set(commands(PROMISED)) <= there


def test_predict_repeats_the_validation_table(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = (command for command in COMMANDS if "--csv data/val.csv" in command)
    run_script(PAGE.as_python(command), monkeypatch)
    first, second = (
        list(csv.DictReader(Path(folder, "cases.csv").read_text(encoding="utf-8").splitlines()))
        for folder in ("outputs", "check")
    )
    assert [row.pop("name") for row in first] == [row.pop("name") for row in second]
    for one, other in zip(first, second, strict=True):
        assert {key: float(value or "nan") for key, value in one.items()} == pytest.approx(
            {key: float(value or "nan") for key, value in other.items()}, abs=1e-4, nan_ok=True
        )


def test_the_columns_on_the_page_are_those_that_are_read() -> None:
    (block,) = PAGE.blocks("csv")
    assert block.text.splitlines()[0].split(",") == list(COLUMNS)


def test_the_table_of_flags_is_up_to_date() -> None:
    expected = insert_flag_tables(PAGE.path, APP)
    assert PAGE.text() == expected, "run scripts/flag_tables.py"
    assert BEGIN in expected
    assert "| `--lr` | `0.0001` |" in flag_tables(APP)


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_sizes_is_true(name: str) -> None:
    shape = PRESETS[name]
    sizes = (shape.image_size, shape.patch_size, shape.embed_dim, shape.depth, shape.num_heads)
    assert f"| `{name}` | " + " | ".join(map(str, sizes)) + " |" in PAGE.text()


def test_a_run_leaves_what_the_page_lists(there: Path) -> None:
    (listing,) = PAGE.blocks("text")
    names = [line.split()[0] for line in listing.text.splitlines()]
    listed = {f"checkpoints/{name}" if name.endswith("_model.pth") else name.rstrip("/") for name in names}
    run = there / "outputs"
    left = {str(path.relative_to(run)) for path in (*run.iterdir(), *(run / "checkpoints").iterdir())}
    for pattern in listed:
        assert fnmatch.filter(left, pattern), pattern
    more = {name for name in left if not any(fnmatch.fnmatch(name, pattern) for pattern in listed)}
    assert {name for name in more if not name.startswith("checkpoints/step_")} == {"run.lock", "clicks"}


def test_a_run_needs_nothing_outside_its_folder(there: Path) -> None:
    links = re.findall(r"\]\(<(.+?)>\)", (there / "outputs/summary.md").read_text(encoding="utf-8"))
    assert "statistics.png" in links
    assert all(Path(link).name == link and (there / "outputs" / link).is_file() for link in links)


def test_links_inside_the_page_lead_somewhere() -> None:
    assert PAGE.broken_links() == set()
