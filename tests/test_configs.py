"""Every YAML file under configs/ fits the typed configuration of its app, alone and with the choices of every group."""

import json
from pathlib import Path

import fastjsonschema
import pytest

from mlcore.cli.apps import app_names, load_app
from mlcore.config.compose import EXPERIMENT, Composed, Request, compose, group_choices
from mlcore.config.dump import to_schema, to_yaml
from mlcore.config.names import NameTable
from mlcore.config.section import Section
from mlcore.config.text import ConfigError, dump_value, read_document

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
APPS: dict[str, type[Section]] = {name: load_app(name).config_cls for name in app_names()}
BASES = {"doc_ensemble": {"ensemble.yaml"}}  # what another script of the app starts from besides default.yaml
CHOICES = [
    (app, group, choice)
    for app in APPS
    for group, choices in group_choices(CONFIGS / app).items()
    for choice in choices
]
SCHEDULES: dict[str, dict[str, float]] = {  # what each preset has meant since each app had its own files
    "constant": {},
    "cosine": {"eta_min": 0.0},
    "cosine_warm_restart": {"T_0": 10.0, "T_mult": 2.0, "eta_min": 1e-6},
    "exponential": {"gamma": 0.95},
    "step": {"step_size": 30.0, "gamma": 0.1},
    **{name: {"factor": 0.1, "patience": 10} for name in ("plateau", "reduce_on_plateau")},
    **{
        name: {"warmup_steps": 100.0, "min_lr": 0.0, "warmup_start_lr": 0.0}
        for name in ("warmup_cosine", "cosine_warmup", "warmup_linear")
    },
}


def load(app: str, *overrides: tuple[str, str], demo: bool = False) -> Composed[Section]:
    return compose(APPS[app], CONFIGS / app, Request(overrides=overrides, demo=demo), environ={})


def test_every_folder_belongs_to_an_app_or_to_all() -> None:
    assert {path.name for path in CONFIGS.iterdir()} == {*APPS, "shared"}


@pytest.mark.parametrize("app", APPS)
def test_every_app_has_the_shared_schedules_with_the_values_they_always_had(app: str) -> None:
    assert set(group_choices(CONFIGS / app)["scheduler"]) == set(SCHEDULES)
    for name, params in SCHEDULES.items():
        scheduler = load(app, ("scheduler", name)).config.model_dump()["scheduler"]
        assert {key: value for key, value in scheduler.items() if value is not None} == {"name": name, **params}


@pytest.mark.parametrize("app", APPS)
def test_every_file_is_the_default_the_demo_or_a_choice(app: str) -> None:
    table = NameTable(APPS[app])
    files = {path.relative_to(CONFIGS / app).as_posix() for path in (CONFIGS / app).rglob("*") if path.is_file()}
    choices = {
        file.relative_to(CONFIGS / app).as_posix()
        for choices in group_choices(CONFIGS / app).values()
        for file in choices.values()
        if file.is_relative_to(CONFIGS / app)
    }
    assert files == {"default.yaml", "demo.yaml"} | BASES.get(app, set()) | choices
    assert set(group_choices(CONFIGS / app)) - {EXPERIMENT} <= set(table.sections)


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("demo", [False, True])
def test_default_and_demo(app: str, demo: bool) -> None:
    assert load(app, demo=demo).demo is demo


@pytest.mark.parametrize(("app", "base"), [(app, name) for app, names in BASES.items() for name in names])
@pytest.mark.parametrize("demo", [False, True])
def test_other_bases(app: str, base: str, demo: bool) -> None:
    composed = compose(APPS[app], CONFIGS / app, Request(demo=demo, base=("default.yaml", base)), environ={})
    assert composed.demo is demo


@pytest.mark.parametrize(("app", "group", "choice"), CHOICES)
@pytest.mark.parametrize("demo", [False, True])
def test_every_choice(app: str, group: str, choice: str, demo: bool) -> None:
    load(app, (group, choice), demo=demo)


@pytest.mark.parametrize(
    ("app", "experiment", "group", "choice"),
    [
        (app, experiment, group, choice)
        for app, folder, experiment in CHOICES
        for other, group, choice in CHOICES
        if folder == EXPERIMENT and other == app and group != EXPERIMENT
    ],
)
def test_every_experiment_with_every_choice(app: str, experiment: str, group: str, choice: str) -> None:
    load(app, (EXPERIMENT, experiment), (group, choice))


@pytest.mark.parametrize(("app", "group", "choice"), CHOICES)
def test_every_choice_says_what_it_is_for(app: str, group: str, choice: str) -> None:
    file = group_choices(CONFIGS / app)[group][choice]
    assert file.read_text(encoding="utf-8").startswith("# ")
    assert read_document(file).values


@pytest.mark.parametrize("app", APPS)
def test_every_setting_has_a_meaning_and_every_length_a_unit(app: str) -> None:
    for path, leaf in NameTable(APPS[app]).leaves.items():
        assert len(leaf.info.description or "") >= 10, path
        counts = any(
            word in path.rpartition(".")[2] for word in ("_steps", "epochs", "_size", "num_", "patience", "_hours")
        )
        assert leaf.meta.unit or not counts or path in {"model.model_size", "train.auto_batch_size"}, path


@pytest.mark.parametrize("app", APPS)
def test_every_default_can_be_given_back_on_the_command_line(app: str) -> None:
    composed = load(app)
    values = composed.config.model_dump(mode="json")
    overrides = []
    for path in NameTable(APPS[app]).leaves:
        value = values
        for key in path.split("."):
            value = value[key]
        overrides.append((path, dump_value(value)))
    assert load(app, *overrides).config == composed.config


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("demo", [False, True])
def test_every_app_reads_the_file_that_explains_its_settings(app: str, demo: bool, tmp_path: Path) -> None:
    composed = load(app, demo=demo)
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(composed.config, explain=True), encoding="utf-8")
    assert compose(APPS[app], CONFIGS / app, Request(files=[file]), environ={}).config == composed.config


@pytest.mark.parametrize("app", APPS)
def test_every_file_of_an_app_fits_the_schema_for_editors(app: str) -> None:
    valid = fastjsonschema.compile(json.loads(json.dumps(to_schema(APPS[app], group_choices(CONFIGS / app)))))
    files = ["default.yaml", "demo.yaml", *BASES.get(app, ()), *(CONFIGS / app / EXPERIMENT).glob("*.yaml")]
    for file in files:
        valid(read_document(CONFIGS / app / file).values)
    with pytest.raises(fastjsonschema.JsonSchemaValueException, match="trian"):
        valid({"trian": {"lr": 1}})


def test_perceiver_reads_the_flat_json_of_its_users(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        '{"batch_size": 32, "learning_rate": 1e-4, "num_epochs": 100, "weight_decay": 1e-4, "model_size": "base",'
        ' "dataset_type": "synthetic", "seq_len_range": [50, 200], "num_samples": 5000}'
    )
    composed = compose(APPS["perceiver"], CONFIGS / "perceiver", Request(files=[file]), environ={})
    config = composed.config
    assert (config.train.batch_size, config.train.lr, config.train.epochs, config.train.weight_decay) == (
        32,
        1e-4,
        100,
        1e-4,
    )
    assert (config.model.model_size, config.data.dataset) == ("base", "synthetic")
    assert (config.data.seq_len_range, config.data.num_samples) == ((50, 200), 5000)


def test_perceiver_lengths_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match=r"command line: data\.seq_len_range = \[9, 5\]: the shortest length"):
        load("perceiver", ("seq_len_range", "[9, 5]"))


@pytest.mark.parametrize("app", APPS)
def test_the_demo_of_every_app_is_judged_by_folds_and_seeds(app: str) -> None:
    asked = [("protocol.folds", "5"), ("protocol.seeds", "2"), ("protocol.refit", "true")]
    group = load_app(app).group(load(app, *asked, demo=True).config)
    assert group is not None
    assert (len(group.configs), group.last is not None) == (10, True)
    again = [load_app(app).group(config) for config in group.configs.values()]
    assert again == [None] * 10  # each of them is one run, which asks for no further ones
