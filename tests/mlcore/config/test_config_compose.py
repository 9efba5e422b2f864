"""Precedence, choices, names, interpolation, and what each mistake is told."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, SecretStr

from mlcore.config.compose import Composed, Request, compose, group_choices
from mlcore.config.difference import config_differences
from mlcore.config.layers import Rank
from mlcore.config.names import NameTable
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.section import Section, field
from mlcore.config.sections import TrackingConfig, TrainConfig
from mlcore.config.text import ConfigError


class DataConfig(Section):
    dataset: Literal["synthetic", "folder"] | None = field(None, "Data", aliases=("dataset_type",))
    root: Path | None = field(None, "Folder")
    seq_len_range: tuple[int, int] = field((50, 200), "Lengths")
    weights: list[Annotated[float, Field(ge=0)]] = field([], "Weights")
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = field("auto", "Workers")
    label: str = field("", "Text")
    flip: bool = field(default=False, description="Switch")
    password: SecretStr | None = field(None, "Secret")


class AugmentConfig(Section):
    strength: float = field(0.0, "Strength")
    rotate: float = field(0.0, "Rotation", unit="degrees")
    title: str = field("", "What the strength is called", describes="strength")


class ToyConfig(Section):
    data: DataConfig = field(DataConfig(), "Data")
    train: TrainConfig = field(TrainConfig(), "Training")
    augment: AugmentConfig = field(AugmentConfig(), "Augmentation")
    scheduler: SchedulerConfig = field(SchedulerConfig(), "Schedule")
    tracking: TrackingConfig = field(TrackingConfig(), "Tracking")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An app's config folder with a default, a demo, two groups and two experiments."""
    files = {
        "default.yaml": "defaults:\n  scheduler: warmup_cosine\ntrain:\n  batch_size: 8\n",
        "demo.yaml": "data:\n  dataset: synthetic\ntrain:\n  epochs: 2\n",
        "scheduler/warmup_cosine.yaml": "name: warmup_cosine\nwarmup_steps: 100\n",
        "scheduler/cosine.yaml": "name: cosine\nT_max: 100\neta_min: 0.0\n",
        "scheduler/step.yaml": "name: step\nparams:\n  step_size: 30\n  gamma: 0.1\n",
        "augment/weak.yaml": "strength: 0.1\n",
        "augment/strong.yaml": "strength: 0.9\ntitle: much\n",
        "experiment/big.yaml": "defaults:\n  augment: strong\ntrain:\n  batch_size: 512\n  lr: 0.1\n",
        "experiment/long.yaml": "scheduler:\n  name: cosine\n  T_max: 7\naugment: weak\n",
    }
    for name, text in files.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "configs"


def run(folder: Path, *overrides: str, environ: dict[str, str] | None = None, **request: Any) -> Composed[ToyConfig]:
    pairs = [tuple(override.split("=", 1)) for override in overrides]
    return compose(ToyConfig, folder, Request(overrides=pairs, **request), environ=environ or {})  # type: ignore[arg-type]


def config_file(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder.parent / name
    path.write_text(text)
    return path


# ---------------------------------------------------------------- precedence


SOURCES = ["default", "demo", "group", "experiment", "file", "environment", "command"]


@pytest.mark.parametrize(("lower", "higher"), list(itertools.combinations(SOURCES, 2)))
def test_every_source_wins_over_every_lower_one(tmp_path: Path, lower: str, higher: str) -> None:
    """The setting that all seven sources can give: wandb_project (in group `tracking`)."""
    folder = tmp_path / "configs"
    for sub in ("tracking", "experiment"):
        (folder / sub).mkdir(parents=True)
    present = {lower, higher}
    for name in ("default.yaml", "demo.yaml"):
        (folder / name).touch()
    for source, name in {"default": "default.yaml", "demo": "demo.yaml", "experiment": "experiment/e.yaml"}.items():
        if source in present:
            (folder / name).write_text(f"tracking:\n  wandb_project: {source}\n")
    (folder / "tracking" / "g.yaml").write_text("wandb_project: group\n")
    file = config_file(folder, "wandb_project: file\n")
    overrides = [
        text
        for source, text in {
            "group": "tracking=g",
            "experiment": "experiment=e",
            "command": "wandb_project=command",
        }.items()
        if source in present
    ]
    composed = run(
        folder,
        *overrides,
        files=[file] if "file" in present else [],
        demo="demo" in present,
        environ={"WANDB_PROJECT": "environment"} if "environment" in present else {},
    )
    assert composed.config.tracking.wandb_project == higher


def test_defaults_of_the_model_rank_lowest(folder: Path) -> None:
    composed = run(folder)
    assert composed.config.train.batch_size == 8  # default.yaml
    assert composed.config.train.epochs == TrainConfig().epochs
    assert composed.sources["train.epochs"].rank is Rank.MODEL
    assert composed.sources["train.batch_size"].where.endswith("default.yaml:4")


def test_later_override_of_one_setting_wins_by_any_of_its_names(folder: Path) -> None:
    assert run(folder, "learning_rate=1", "lr=2", "train.lr=3").config.train.lr == 3.0


def test_later_config_file_wins(folder: Path) -> None:
    files = [config_file(folder, "lr: 1", "a.yaml"), config_file(folder, '{"lr": 2}', "b.json")]
    assert run(folder, files=files).config.train.lr == 2.0


@pytest.mark.parametrize(
    ("overrides", "text", "title"),
    [
        (["augment=strong"], "", "much"),
        (["augment=strong", "rotate=3"], "", "much"),
        (["augment=strong", "strength=0.5"], "", ""),  # the preset did not mean this strength
        (["augment=strong"], "augment: {strength: 0.5}", ""),
        (["augment=strong", "strength=0.5", "title=mine"], "", "mine"),
        (["augment=strong", "strength=0.5"], "augment: {title: mine}", "mine"),  # the user's own word
        (["experiment=big"], "", "much"),
        (["experiment=big", "strength=0.5"], "", ""),
    ],
)
def test_what_a_preset_says_of_a_value_goes_with_the_value(
    folder: Path, overrides: list[str], text: str, title: str
) -> None:
    composed = run(folder, *overrides, files=[config_file(folder, text)] if text else [])
    assert composed.config.augment.title == title
    assert (composed.sources["augment.title"].rank is Rank.MODEL) == (title == "")


def test_empty_environment_variable_is_as_good_as_none(folder: Path) -> None:
    assert run(folder, environ={"WANDB_PROJECT": ""}).config.tracking.wandb_project is None


def test_environment_text_stays_text(folder: Path) -> None:
    composed = run(folder, environ={"WANDB_PROJECT": "123"})
    assert composed.config.tracking.wandb_project == "123"
    assert composed.sources["tracking.wandb_project"].where == "environment variable WANDB_PROJECT"


def test_was_given_means_by_the_user(folder: Path) -> None:
    composed = run(folder, "lr=1", demo=True)
    assert composed.was_given("train.lr")
    assert not composed.was_given("data.dataset")  # demo.yaml
    assert not composed.was_given("train.batch_size")  # default.yaml
    assert not composed.was_given("train.momentum")  # the model


def test_demo_is_applied_unasked_only_while_its_setting_is_missing(folder: Path) -> None:
    missing = run(folder, demo_unless=("data.dataset",))
    assert missing.demo
    assert missing.config.train.epochs == 2
    given = run(folder, "dataset=folder", demo_unless=("data.dataset",))
    assert not given.demo
    assert given.config.train.epochs == TrainConfig().epochs


# ---------------------------------------------------------------- choices


def test_group_choice_replaces_the_default_choice_with_its_parameters(folder: Path) -> None:
    assert run(folder).config.scheduler.params() == {"warmup_steps": 100.0}
    step = run(folder, "scheduler=step").config.scheduler
    assert (step.name, step.params()) == ("step", {"step_size": 30.0, "gamma": 0.1})
    assert step.warmup_steps is None


def test_selecting_by_name_drops_parameters_of_the_former_choice(folder: Path) -> None:
    assert run(folder, "scheduler_type=cosine").config.scheduler.params() == {}


def test_naming_the_same_choice_again_keeps_its_parameters(folder: Path) -> None:
    assert run(folder, "scheduler_type=warmup_cosine").config.scheduler.params() == {"warmup_steps": 100.0}


def test_experiment_values_win_over_those_of_the_group_file(folder: Path) -> None:
    assert run(folder, "scheduler=cosine", "experiment=long").config.scheduler.params() == {
        "T_max": 7.0,
        "eta_min": 0.0,
    }


def test_choice_on_the_command_line_stands_whatever_the_experiment_chose(folder: Path) -> None:
    config = run(folder, "scheduler=step", "augment=strong", "experiment=long").config
    assert config.scheduler.params() == {"step_size": 30.0, "gamma": 0.1}
    assert config.augment.strength == 0.9


def test_experiment_defaults_choose_groups(folder: Path) -> None:
    config = run(folder, "experiment=big").config
    assert config.augment.strength == 0.9
    assert (config.train.batch_size, config.train.lr) == (512, 0.1)


def test_a_name_in_place_of_a_section_is_a_choice(folder: Path) -> None:
    assert run(folder, files=[config_file(folder, "augment: weak\nscheduler: step\n")]).config.augment.strength == 0.1


def test_values_beside_a_section_without_selection_are_kept(folder: Path) -> None:
    (folder / "default.yaml").write_text("augment:\n  rotate: 5\n")
    assert run(folder, "augment=weak").config.augment == AugmentConfig(strength=0.1, rotate=5.0)


def test_default_schedule_of_the_model_counts_as_a_choice(folder: Path) -> None:
    (folder / "default.yaml").write_text("scheduler:\n  T_max: 9\n")  # of cosine, the model's default
    assert run(folder).config.scheduler.params() == {"T_max": 9.0}
    assert run(folder, "scheduler_type=constant").config.scheduler.params() == {}


def test_group_file_may_have_another_name_than_the_choice_inside(folder: Path) -> None:
    (folder / "scheduler" / "gentle.yaml").write_text("name: cosine\nT_max: 3\n")
    assert run(folder, "scheduler=gentle").config.scheduler.params() == {"T_max": 3.0}


def test_groups_beside_the_apps_folder_are_offered_too_and_the_apps_own_file_wins(folder: Path) -> None:
    shared = folder.parent / "shared" / "scheduler"
    shared.mkdir(parents=True)
    (shared / "constant.yaml").write_text("name: constant\n")
    (shared / "step.yaml").write_text("name: step\nstep_size: 1\n")
    assert group_choices(folder)["scheduler"]["constant"] == shared / "constant.yaml"
    assert run(folder, "scheduler=constant").config.scheduler.name == "constant"
    assert run(folder, "scheduler=step").config.scheduler.step_size == 30.0
    with pytest.raises(ConfigError, match=r"Choices: constant, cosine, .*shared/scheduler, .*configs/scheduler\)"):
        run(folder, "scheduler=cosin")


def test_a_synonym_is_the_other_choice_under_its_own_name(folder: Path) -> None:
    (folder / "scheduler" / "cosine_warmup.yaml").write_text("synonym_of: warmup_cosine\nname: cosine_warmup\n")
    composed = run(folder, "scheduler=cosine_warmup")
    assert composed.config.scheduler == SchedulerConfig(name="cosine_warmup", warmup_steps=100)
    assert composed.sources["scheduler.warmup_steps"].where.endswith("scheduler/warmup_cosine.yaml:2")


def test_a_synonym_of_nothing_is_told_with_its_place(folder: Path) -> None:
    (folder / "scheduler" / "other.yaml").write_text("# Another name.\nsynonym_of: stap\n")
    with pytest.raises(ConfigError, match=r"other\.yaml:2: scheduler has no choice 'stap', did you mean 'step'"):
        run(folder, "scheduler=other")


# ---------------------------------------------------------------- what every run starts from


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("default.yaml", Request()),
        ("demo.yaml", Request(demo=True)),
        ("demo.yaml", Request(demo_unless=("data.dataset",))),
        ("more.yaml", Request(base=("default.yaml", "more.yaml"))),
    ],
)
def test_a_file_that_a_run_starts_from_must_be_there(folder: Path, name: str, request_: Request) -> None:
    (folder / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=rf"configs/{name}: no such file, .* restore it, or make it an empty file"):
        compose(ToyConfig, folder, request_, environ={})
    (folder / name).touch()
    compose(ToyConfig, folder, request_, environ={})


@pytest.mark.parametrize("name", ["default.yaml", "demo.yaml"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lr: 1", r":1: not valid YAML"),
        ("- train\n", r": expected `key: value` pairs .* found a list"),
    ],
)
def test_a_damaged_file_that_a_run_starts_from_is_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"configs/{name}{message}"):
        run(folder, demo=True)


# ---------------------------------------------------------------- names and values


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("src.schedulers.cosine.CosineScheduler", "cosine"),
        ("src.schedulers.warmup_cosine.WarmupCosineScheduler", "warmup_cosine"),
        ("WarmupLinearScheduler", "warmup_linear"),
    ],
)
def test_a_schedule_named_by_a_class_is_a_name_and_nothing_is_imported(folder: Path, target: str, name: str) -> None:
    (folder / "old.yaml").write_text(f"scheduler:\n  _target_: {target}\n")
    config = compose(ToyConfig, folder, Request(files=[folder / "old.yaml"]), environ={}).config
    assert config.scheduler.name == name
    assert config.scheduler.warmup_steps is None  # of the default's choice, which is gone


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "src.schedulers.evil.__import__Scheduler"])
def test_other_classes_are_no_schedules(folder: Path, target: str) -> None:
    (folder / "old.yaml").write_text(f"scheduler:\n  _target_: {target}\n")
    with pytest.raises(ConfigError, match=r"old\.yaml:2: scheduler\.name = .*expected"):
        compose(ToyConfig, folder, Request(files=[folder / "old.yaml"]), environ={})


def test_a_script_may_start_from_more_files_than_the_default_one(folder: Path) -> None:
    (folder / "ensemble.yaml").write_text("train:\n  batch_size: 9\n")
    request = Request(base=("default.yaml", "ensemble.yaml"), demo=True)
    config = compose(ToyConfig, folder, request, environ={}).config
    assert (config.train.batch_size, config.train.epochs, config.scheduler.name) == (9, 2, "warmup_cosine")


def test_flat_keys_of_old_json_files(folder: Path) -> None:
    text = (
        '{"batch_size": 32, "learning_rate": 1e-4, "num_epochs": 100, "weight_decay": 1e-4,'
        ' "dataset_type": "synthetic", "seq_len_range": [50, 200], "train.momentum": 0.5}'
    )
    config = run(folder, files=[config_file(folder, text, "config.json")]).config
    assert (config.train.batch_size, config.train.lr, config.train.epochs) == (32, 1e-4, 100)
    assert (config.data.dataset, config.data.seq_len_range, config.train.momentum) == ("synthetic", (50, 200), 0.5)


def test_aliases_work_inside_sections_too(folder: Path) -> None:
    assert run(folder, files=[config_file(folder, "train: {learning_rate: 1e-3}")]).config.train.lr == 1e-3


@pytest.mark.parametrize("name", ["scheduler.params.T_max", "scheduler.T_max", "T_max"])
def test_nested_params_may_be_named_or_left_out(folder: Path, name: str) -> None:
    assert run(folder, "scheduler=cosine", f"{name}=5").config.scheduler.T_max == 5.0


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("lr=2e-4", "train.lr", 2e-4),
        ("lr=1", "train.lr", 1.0),
        ("max_grad_norm=null", "train.max_grad_norm", None),
        ("seq_len_range=[5, 9]", "data.seq_len_range", (5, 9)),
        ("weights=[1,2.5]", "data.weights", [1.0, 2.5]),
        ("workers=4", "data.workers", 4),
        ("workers=auto", "data.workers", "auto"),
        ("label=123", "data.label", "123"),
        ("label=true", "data.label", "true"),
        ("label=#1 a: b", "data.label", "#1 a: b"),
        ("label=", "data.label", ""),
        ("root=2024", "data.root", Path("2024")),
        ("flip=true", "data.flip", True),
        ("dataset=null", "data.dataset", None),
    ],
)
def test_text_is_read_by_the_type_of_the_setting(folder: Path, override: str, path: str, value: object) -> None:
    section, name = path.split(".")
    found = getattr(getattr(run(folder, override).config, section), name)
    assert found == value
    assert type(found) is type(value)


# ---------------------------------------------------------------- interpolation


@pytest.mark.parametrize("form", ["${env:BS}", "${oc.env:BS}", "${env:BS,7}"])
def test_environment_interpolation(folder: Path, form: str) -> None:
    file = config_file(folder, f"train:\n  batch_size: {form}\ndata:\n  root: '${{env:ROOT,/data}}/x'\n")
    config = run(folder, files=[file], environ={"BS": "64"}).config
    assert config.train.batch_size == 64
    assert config.data.root == Path("/data/x")


def test_interpolation_on_the_command_line(folder: Path) -> None:
    assert run(folder, "root=${oc.env:DATA_DIR}/a", environ={"DATA_DIR": "/d"}).config.data.root == Path("/d/a")


def test_missing_variable_is_named_with_place_and_way_out(folder: Path) -> None:
    file = config_file(folder, "train:\n  lr: 1\ndata:\n  root: ${env:DATA_DIR}\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml:4: data\.root: environment variable DATA_DIR is not set; .*export"
    ):
        run(folder, files=[file])


def test_other_interpolation_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'\$\{data\.root\}' is not understood; write \$\{env:NAME\}"):
        run(folder, "label=${data.root}")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  lr: 1\n  batch_sise: 3\n",
            r"mine\.yaml:3: unknown key 'train\.batch_sise', did you mean 'batch_size'\?",
        ),
        ("learning_rat: 3\n", r"mine\.yaml:1: unknown key 'learning_rat', did you mean 'learning_rate'\?"),
        ("trian:\n  lr: 3\n", r"mine\.yaml:1: unknown key 'trian', did you mean 'train'\?"),
        ("zzzzzz: 3\n", r"mine\.yaml:1: unknown key 'zzzzzz'$"),
        ("_target_: os.system\n", r"unknown key '_target_'; files name no classes here"),
        ("train: 3\n", r"mine\.yaml:1: train is a section; expected `key: value` pairs"),
        (
            "batch_size: '32'\n",
            r"mine\.yaml:1: train\.batch_size = '32': expected a whole number, at least 1 \(samples\)",
        ),
        ("batch_size: true\n", r"batch_size = true: expected a whole number"),
        ("batch_size: 2.0\n", r"batch_size = 2\.0: expected a whole number"),
        ("batch_size: null\n", r"batch_size = null: expected a whole number"),
        ("lr: true\n", r"lr = true: expected a number, above 0"),
        ("lr: .nan\n", r"lr = \.nan: expected a number"),
        ("flip: 1\n", r"data\.flip = 1: expected true or false"),
        ("label: 5\n", r"data\.label = 5: expected text"),
        (
            "train:\n  lr: 1\n  optimizer: adamv\n",
            r"mine\.yaml:3: .*expected one of adamw, adam, sgd, did you mean 'adam'\?",
        ),
        ("workers: -1\n", r"data\.workers = -1: expected 'auto' or a whole number at least 0"),
        (
            "seq_len_range: [1, 2, 3]\n",
            r"seq_len_range = \[1, 2, 3\]: expected a list of a whole number and a whole number",
        ),
        ("weights: [1, -2]\n", r"weights = \[1, -2\]: expected a list, each a number at least 0 \(item 1: "),
        (
            "lr: 1\nlearning_rate: 2\n",
            r"mine\.yaml:2: train\.lr was given before, at .*mine\.yaml:1, under another name",
        ),
        ("mode: min\n", r"'mode' could be any of train\.early_stopping\.mode, scheduler\.mode; write the full name"),
        (
            "scheduler: cosin\n",
            r"mine\.yaml:1: scheduler has no choice 'cosin', did you mean 'cosine'\? Choices: cosine, step",
        ),
        ("defaults: [scheduler]\n", r"mine\.yaml:1: 'defaults' holds `group: choice` pairs"),
        ("defaults: {train: x}\n", r"mine\.yaml:1: 'train' is no group with choices \(groups: augment, scheduler\)"),
        ("password: 12345\n", r"data\.password = \*\*\*: expected text"),
    ],
)
def test_mistakes_in_files(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(folder, files=[config_file(folder, text)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.btch_size=3"], r"command line: unknown key 'train\.btch_size', did you mean 'train\.batch_size'\?"),
        (["train=3"], r"command line: train is a section; set one of its keys, as in train\.KEY=VALUE"),
        (["scheduler=cosin"], r"command line: scheduler has no choice 'cosin', did you mean 'cosine'\?"),
        (["experiment=bog"], r"experiment has no choice 'bog', did you mean 'big'\? Choices: big, long"),
        (["scheduler=cosine,step"], r"a comma list needs -m \(multirun\)\. Choices: cosine, step"),
        (["lr=1e-3,1e-4"], r"lr = 1e-3,1e-4: expected a number, above 0; a comma list needs -m \(multirun\)$"),
        (["optimizer=adam,sgd"], r"expected one of adamw, adam, sgd; a comma list needs -m \(multirun\)$"),
        (["weights=1,2"], r"weights = 1,2: expected a list, each a number at least 0$"),
        (["lr=#1"], r"train\.lr = '#1': expected a number, above 0$"),
        (["batch_size=abc"], r"command line: train\.batch_size = abc: expected a whole number"),
        (
            ["scheduler=step", "T_max=3"],
            r"command line: scheduler\.T_max = 3: schedule 'step' does not take it; it takes step_size",
        ),
        (["scheduler_type=exponential"], r"^scheduler\.gamma \(--gamma\): schedule 'exponential' needs it$"),
    ],
)
def test_mistakes_on_the_command_line(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(folder, *overrides)


def test_a_union_complains_once_and_names_the_item(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").touch()

    class Weighted(Section):
        weights: Literal["none"] | list[float] = field("none", "Weights of the classes")

    with pytest.raises(
        ConfigError, match=r"^command line: weights = \[1, x\]: expected 'none' or .* \(item 1: [^\n]*\)$"
    ):
        compose(Weighted, tmp_path, Request(overrides=[("weights", "[1, x]")]), environ={})


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(folder, "batch_size=0", "lr=-1", "optimizer=x")
    assert len(str(caught.value).splitlines()) == 3


def test_a_parameter_written_for_another_schedule_in_the_same_file_is_an_error(folder: Path) -> None:
    file = config_file(folder, "scheduler:\n  name: step\n  step_size: 3\n  T_max: 4\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:4: scheduler\.T_max = 4: schedule 'step' does not take it"):
        run(folder, files=[file])


def test_missing_environment_backed_value_of_the_wrong_kind_names_the_variable(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"environment variable WANDB_MODE: tracking\.wandb_mode = onlin: .*'online'"):
        run(folder, environ={"WANDB_MODE": "onlin"})


def test_required_settings_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").touch()

    class Inner(Section):
        csv: Path = field(description="Table of samples")

    class Needy(Section):
        data: Inner = field(description="Data")

    with pytest.raises(ConfigError, match=r"data\.csv is missing; give it as --csv or in a file; expected a path"):
        compose(Needy, tmp_path, Request(overrides=[]), environ={})


def test_an_app_may_give_sections_other_defaults(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").touch()

    class Base(Section):
        train: TrainConfig = field(TrainConfig(epochs=200, batch_size=2), "Training")
        scheduler: SchedulerConfig = field(SchedulerConfig(name="step", step_size=30), "Schedule")

    composed = compose(Base, tmp_path, Request(overrides=[("lr", "0.5")]), environ={})
    assert composed.config == Base(train=TrainConfig(epochs=200, batch_size=2, lr=0.5))
    assert composed.sources["train.epochs"].rank is Rank.MODEL
    other = compose(Base, tmp_path, Request(overrides=[("scheduler_type", "cosine")]), environ={})
    assert other.config.scheduler == SchedulerConfig(name="cosine")


def test_two_fields_cannot_claim_one_alias() -> None:
    class Twice(Section):
        a: int = field(1, "A", aliases=("x",))
        b: int = field(1, "B", aliases=("x",))

    with pytest.raises(ValueError, match="alias 'x' of b already names a"):
        NameTable(Twice)


def test_a_name_that_is_not_utf_8_is_told_with_its_setting(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"command line: data\.root is not UTF-8 text"):
        compose(ToyConfig, folder, Request(overrides=[("data.root", "/data/\udcff.csv")]), environ={})


def test_a_long_value_is_shown_in_part(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(ToyConfig, folder, Request(overrides=[("train.lr", "x" * 5000)]), environ={})
    assert len(str(caught.value)) < 400


def test_what_is_masked_in_a_record_is_no_difference() -> None:
    old = {"data": {"root": "https://***@host/x", "label": "a***c"}, "train": {"lr": 0.1}}
    new = {"data": {"root": "https://me:pass@host/x", "label": "abbc"}, "train": {"lr": 0.1}}
    assert config_differences(old, new) == config_differences(new, old) == []
    assert config_differences(old, {**new, "data": {"root": "https://me@host/y", "label": "abb"}}) == [
        "data.label a***c -> abb",
        "data.root https://***@host/x -> https://me@host/y",
    ]


def test_how_long_a_process_works_is_no_other_run() -> None:
    assert config_differences({"train": {"max_hours": 1.0}}, {"train": {"max_hours": None}}) == []
