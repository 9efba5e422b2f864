"""Flags, overrides, actions and help."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from mlcore.base.errors import UserError
from mlcore.cli.app import App
from mlcore.cli.invocation import Invocation, expand, split, varied
from mlcore.cli.main import guarded, run_app
from mlcore.cli.parse import parse
from mlcore.config.compose import group_choices
from mlcore.config.names import NameTable
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.section import Section, field
from mlcore.config.sections import EarlyStoppingConfig, RunConfig, TrackingConfig, TrainConfig
from mlcore.config.text import ConfigError


class DataConfig(Section):
    dataset: str | None = field(None, "Data set", aliases=("dataset_type",))
    seq_len_range: tuple[int, int] = field((50, 200), "Lengths 100 % sure", unit="positions")
    tags: list[str] = field([], "Tags")


class ToyConfig(Section):
    data: DataConfig = field(DataConfig(), "Data")
    train: TrainConfig = field(TrainConfig(), "Training")
    scheduler: SchedulerConfig = field(SchedulerConfig(), "Schedule")
    run: RunConfig = field(RunConfig(), "Run")
    tracking: TrackingConfig = field(TrackingConfig(), "Tracking")


@pytest.fixture(autouse=True)
def no_tracking_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def spec(tmp_path: Path) -> App[ToyConfig]:
    folder = tmp_path / "configs"
    for name, text in {
        "default.yaml": "train:\n  batch_size: 8\n",
        "demo.yaml": "train:\n  epochs: 2\n",
        "scheduler/step.yaml": "name: step\nstep_size: 30\n",
        "scheduler/cosine.yaml": "name: cosine\n",
        "experiment/big.yaml": "train:\n  batch_size: 512\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return App(
        name="toy",
        title="Toy",
        description="Trains a toy.",
        config_cls=ToyConfig,
        config_dir=folder,
        build=lambda config, world: None,
        run_name=lambda config: "toy",
        own_data="",
    )


def given(spec: App[ToyConfig], line: str) -> ToyConfig:
    return parse(spec, line.split()).config


@pytest.mark.parametrize(
    "line",
    [
        "--batch_size 32",
        "--batch-size 32",
        "--batch_size=32",
        "--train.batch_size 32",
        "--train.batch-size=32",
        "batch_size=32",
        "train.batch_size=32",
        "+train.batch_size=32",
        "++batch_size=32",
    ],
)
def test_every_spelling_of_one_setting(spec: App[ToyConfig], line: str) -> None:
    assert given(spec, line).train.batch_size == 32


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--use_wandb", True),
        ("--use-wandb", True),
        ("--use_wandb true", True),
        ("--use_wandb=false", False),
        ("--no-use-wandb", False),
        ("--no_use_wandb", False),
        ("--no_tracking.use_wandb", False),
        ("use_wandb=true", True),
        ("--use_wandb --lr 1", True),
        ("--use_wandb lr=1", True),
    ],
)
def test_switches(spec: App[ToyConfig], line: str, expected: bool) -> None:
    assert given(spec, line).tracking.use_wandb is expected


@pytest.mark.parametrize(
    "line",
    [
        "--seq_len_range 5 9",
        "--seq-len-range=[5,9]",
        "--seq_len_range [5,9]",
        "seq_len_range=[5,9]",
        "--seq_len_range 5 9 lr=1",
        "--lr 1 --seq_len_range 5 9 --epochs 3",
    ],
)
def test_lists(spec: App[ToyConfig], line: str) -> None:
    assert given(spec, line).data.seq_len_range == (5, 9)


def test_command_lines_that_users_were_promised(spec: App[ToyConfig]) -> None:
    config = given(
        spec, "--dataset synthetic --epochs 10 --batch_size 16 --lr 2e-4 --scheduler_type cosine --patience 15"
    )
    assert (config.data.dataset, config.train.epochs, config.train.batch_size) == ("synthetic", 10, 16)
    assert (config.train.lr, config.scheduler.name, config.train.early_stopping.patience) == (2e-4, "cosine", 15)
    config = given(spec, "train.batch_size=32 train.epochs=100 train.learning_rate=1e-4 --use_gradient_checkpointing")
    assert (config.train.lr, config.train.gradient_checkpointing) == (1e-4, True)


@pytest.mark.parametrize("line", ["scheduler=step", "--scheduler step", "--scheduler=step"])
def test_group_choice(spec: App[ToyConfig], line: str) -> None:
    assert given(spec, line).scheduler.params() == {"step_size": 30.0}


@pytest.mark.parametrize("line", ["+experiment=big", "experiment=big", "--experiment big"])
def test_experiment(spec: App[ToyConfig], line: str) -> None:
    invocation = parse(spec, line.split())
    assert invocation.config.train.batch_size == 512
    assert invocation.composed.experiment == "big"


def test_config_files_and_demo(spec: App[ToyConfig], tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"learning_rate": 0.5}')
    invocation = parse(spec, ["--config", str(tmp_path / "mine.json"), "--demo"])
    assert (invocation.config.train.lr, invocation.config.train.epochs) == (0.5, 2)
    assert invocation.demo_requested


@pytest.mark.parametrize(
    ("line", "resume"),
    [
        ("", "auto"),
        ("--resume", "auto"),
        ("--resume never", "never"),
        ("--resume runs/a", "runs/a"),
        ("--resume lr=1", "auto"),
    ],
)
def test_resume(spec: App[ToyConfig], line: str, resume: str) -> None:
    assert given(spec, line).run.resume == resume


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("", "train"),
        ("--dry_run", "dry_run"),
        ("--dry-run lr=1", "dry_run"),
        ("--test", "test"),
        ("--lr-find", "lr_find"),
        ("--cfg job", "print_config"),
        ("--cfg", "print_config"),
        ("--cfg schema", "print_config"),
        ("--print_config", "print_config"),
        ("--print-config lr=1", "print_config"),
        ("--cfg job -m lr=1,2", "print_config"),
        ("-m lr=1,2", "multirun"),
        ("--multirun lr=1,2 --dry_run", "multirun"),
    ],
)
def test_actions(spec: App[ToyConfig], line: str, action: str) -> None:
    assert parse(spec, line.split()).action == action


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--batchsize 3", r"unknown flag '--batchsize', did you mean '--batch_size'\?"),
        ("--dryrun", r"unknown flag '--dryrun', did you mean '--dry_run'\?"),
        ("--zzzzzz", r"unknown flag '--zzzzzz'$"),
        ("--no_lr", r"unknown flag '--no_lr'"),
        ("--batch_size", r"argument --batch_size: expected one argument; --help=all lists all flags"),
        ("--lr -1e-4", r"train\.lr = -0\.0001: expected a number, above 0"),
        ("--use_wandb maybe", r"tracking\.use_wandb = maybe: expected true or false"),
        ("stray", r"unexpected 'stray'; settings are given as --name VALUE or name=VALUE"),
        ("-x", r"unexpected '-x'"),
        ("--mode min", r"'mode' could be any of"),
        ("--bat 3", r"unknown flag '--bat'"),  # no abbreviations: they would change meaning when a setting is added
        ("batchsize=3", r"unknown key 'batchsize', did you mean 'batch_size'\?"),
        ("--test --dry_run", r"--dry_run and --test cannot be combined"),
        ("--config missing.yaml", r"missing\.yaml: no such configuration file"),
        ("-m lr=1,x", r"train\.lr = x: expected a number"),
    ],
)
def test_mistakes(spec: App[ToyConfig], line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(spec, line.split())


def test_values_with_spaces_equals_signs_and_dashes(spec: App[ToyConfig]) -> None:
    config = parse(spec, ["--dataset", "a=b", "run.name=two words", "--tags", "x", "y z", "--resume=a/b=c.pth"]).config
    assert (config.data.dataset, config.run.name, config.data.tags) == ("a=b", "two words", ["x", "y z"])
    assert config.run.resume == "a/b=c.pth"


def test_the_last_of_several_spellings_wins(spec: App[ToyConfig]) -> None:
    assert given(spec, "lr=1 --lr 2 train.lr=3 --learning-rate 4").train.lr == 4.0
    assert given(spec, "--lr 2 lr=1").train.lr == 1.0


def test_scripts_may_have_arguments_of_their_own(spec: App[ToyConfig]) -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--model_path", required=True)
    extra.add_argument("--analyze", action="store_true")
    invocation = parse(spec, ["--model-path", "a=b.pth", "--analyze", "lr=1"], extra=extra)
    assert (invocation.extra.model_path, invocation.extra.analyze, invocation.config.train.lr) == ("a=b.pth", True, 1.0)
    with pytest.raises(ConfigError, match="required: --model_path"):
        parse(spec, [], extra=extra)


# ---------------------------------------------------------------- help


def printed(spec: App[ToyConfig], capsys: pytest.CaptureFixture[str], *argv: str, extra: Any = None) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(spec, argv, extra=extra)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_full_help_has_every_setting_with_default_unit_choices_and_aliases(
    spec: App[ToyConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(printed(spec, capsys, "--help=all").split())
    for path, short in NameTable(ToyConfig).short.items():
        assert f"--{short} " in text, path
    assert (
        "--batch_size N Samples per micro-batch and rank; auto: auto_batch_size [default: 8; unit: samples; "
        "also: --train.batch_size]" in text
    )
    assert "choices: adamw, adam, sgd" in text
    assert "also: --learning_rate, --train.lr" in text
    assert "preset of this section: cosine, step" in text
    assert "100 % sure [default: [50, 200]; unit: positions" in text
    assert "environment: WANDB_PROJECT" in text


@pytest.mark.parametrize("flag", ["-h", "--help", "--help="])
def test_help_is_a_page_that_names_what_to_do_and_the_sections(
    spec: App[ToyConfig], capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--model_path", required=True, help="what the script needs")
    text = printed(spec, capsys, flag, extra=extra)
    assert len(text.splitlines()) < 60
    assert "what the script needs" in text
    assert "--dry_run" in text
    assert "big; also +experiment=NAME" in text
    count = len(TrainConfig.model_fields) - 1 + len(EarlyStoppingConfig.model_fields)
    assert re.search(rf"^  train +{count}  The optimisation\.$", text, re.MULTILINE)
    assert re.search(r"^  scheduler +16  .*\[scheduler=NAME: 2 presets\]$", text, re.MULTILINE)
    assert "--batch_size" not in text


@pytest.mark.parametrize("argv", [("--help=train",), ("--help", "train"), ("-h", "train"), ("lr=1", "--help=train")])
def test_help_on_a_section_has_its_flags_and_those_of_the_sections_in_it(
    spec: App[ToyConfig], capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    text = printed(spec, capsys, *argv)
    assert text.startswith("train:\n")
    assert "--batch_size N" in text
    assert "train.early_stopping:\n" in text
    assert "--dry_run" not in text
    assert "--use_wandb" not in text


def test_help_beside_settings_is_the_page(spec: App[ToyConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(spec, capsys, "--help", "lr=1") == printed(spec, capsys, "--help")


def test_help_on_an_unknown_section_names_the_nearest(spec: App[ToyConfig]) -> None:
    with pytest.raises(ConfigError, match=r"--help: no section 'trian', did you mean 'train'\? sections: data, "):
        parse(spec, ["--help=trian"])
    with pytest.raises(ConfigError, match=r"--help: no section 'zzz'; sections: data, .*tracking, all$"):
        parse(spec, ["--help", "zzz"])


def test_synonyms_are_said_to_be_synonyms(spec: App[ToyConfig], capsys: pytest.CaptureFixture[str]) -> None:
    (spec.config_dir / "scheduler" / "stairs.yaml").write_text("synonym_of: step\nname: step\n")
    text = " ".join(printed(spec, capsys, "--help=scheduler").split())
    assert "preset of this section: cosine, stairs (= step), step; also" in text
    assert "cosine_warmup is warmup_cosine, and reduce_on_plateau is plateau [default" in text


# ---------------------------------------------------------------- completion

COMPLETE = """
source {script}
COMP_WORDS=(toy {words}); COMP_CWORD={last}; COMP_LINE="toy {words}"; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9
$(complete -p toy | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("--batch", {"--batch_size"}),
        ("--dry", {"--dry_run"}),
        ("--scheduler ''", {"cosine", "step"}),
        ("--optimizer a", {"adamw", "adam"}),
        ("--experiment ''", {"big"}),
        ("--use_wandb ''", {"true", "false"}),
        ("--config demo", {"demo.yaml"}),
        ("--output_dir demo", {"demo.yaml"}),
    ],
)
def test_the_script_for_bash_completes_flags_choices_and_files(
    spec: App[ToyConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, offered: set[str]
) -> None:
    script = tmp_path / "toy.bash"
    script.write_text(printed(spec, capsys, "--completion", "bash"))
    code = COMPLETE.format(script=script, words=words, last=len(words.split()))
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=spec.config_dir)
    found = {word.strip() for word in done.stdout.split()}
    assert offered <= found, done.stderr
    assert all(word.startswith(words.split()[-1].strip("'")) for word in found)


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "#compdef toy"), ("tcsh", "complete toy")])
def test_there_are_scripts_for_other_shells(
    spec: App[ToyConfig], capsys: pytest.CaptureFixture[str], shell: str, mark: str
) -> None:
    text = printed(spec, capsys, f"--completion={shell}")
    assert mark in text
    assert "batch_size" in text


def test_completion_asks_for_what_it_needs(spec: App[ToyConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="argument --completion: invalid choice: 'fish'"):
        parse(spec, ["--completion", "fish"])
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(UserError, match="needs the package shtab, which is not installed: pip install shtab"):
        parse(spec, ["--completion", "bash"])


def test_help_and_parsing_load_nothing_heavy(spec: App[ToyConfig]) -> None:
    code = (
        "import sys; from mlcore.cli import app, parse; from mlcore.config import sections, dump; "
        "heavy = {'torch', 'numpy', 'matplotlib', 'wandb', 'boto3', 'shtab'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("a, b", ["a", "b"]),
        ("[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ("'a,b',c", ["a,b", "c"]),
        ("it's,on", ["it's", "on"]),
        ("${env:A,b}", ["${env:A,b}"]),
        ("x", ["x"]),
        ("", [""]),
    ],
)
def test_commas_split_outside_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert split(text) == parts


def test_jobs_are_the_cartesian_product() -> None:
    jobs = expand([("a", "x,y"), ("c", "9"), ("b", "1,2")])
    assert [dict(job) for job in jobs] == [{"a": a, "c": "9", "b": b} for a in "xy" for b in "12"]
    assert varied(jobs)[1] == [("a", "x"), ("b", "2")]


def test_sweeps_take_flags_groups_and_experiments(spec: App[ToyConfig]) -> None:
    invocation = parse(spec, ["-m", "--lr", "1e-3,1e-4", "scheduler=step,cosine", "+experiment=big", "--dry_run"])
    assert len(invocation.jobs) == 4
    assert dict(invocation.jobs[1]) == {"train.lr": "1e-3", "scheduler": "cosine", "experiment": "big"}
    assert [name for name, _ in invocation.overrides] == ["train.lr", "scheduler", "experiment"]
    assert invocation.passed_on == ("--dry_run",)


# ---------------------------------------------------------------- running


def outcome(spec: App[ToyConfig], act: Any, argv: list[str]) -> Any:
    with pytest.raises(SystemExit) as caught:
        run_app(spec, act, argv=argv)
    return caught.value.code


def test_an_app_gets_the_invocation_and_gives_the_exit_code(spec: App[ToyConfig]) -> None:
    seen: list[Invocation[ToyConfig]] = []

    def act(invocation: Invocation[ToyConfig]) -> int:
        seen.append(invocation)
        return 7

    assert outcome(spec, act, ["lr=1"]) == 7
    assert seen[0].config.train.lr == 1.0


def test_cfg_job_prints_yaml_with_origins_and_without_secrets(
    spec: App[ToyConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    code = outcome(spec, lambda _: 1, ["--cfg", "job", "lr=0.5", "dataset=${env:SOME_API_KEY}"])
    text = capsys.readouterr().out
    assert code == 0
    assert "  lr: 0.5  # command line" in text
    assert "default.yaml:2" in text
    assert "0123456789abcdef" not in text


def test_a_printed_configuration_can_be_given_back(
    spec: App[ToyConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["lr=0.5", "scheduler=step", "--demo", "+experiment=big", "tags=[a, '1']"]
    assert outcome(spec, lambda _: 1, ["--print_config", *argv]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# All settings of toy")
    assert "  # Peak learning rate [a number, above 0]\n  lr: 0.5\n" in text
    (tmp_path / "mine.yaml").write_text(text)
    back = parse(spec, ["--config", str(tmp_path / "mine.yaml")])
    assert back.config == parse(spec, argv).config
    edited = text.replace("lr: 0.5", "lr: 0.25")
    (tmp_path / "mine.yaml").write_text(edited)
    assert parse(spec, ["--config", str(tmp_path / "mine.yaml")]).config.train.lr == 0.25


def test_cfg_schema_is_the_json_schema_of_the_files(spec: App[ToyConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(spec, lambda _: 1, ["--cfg", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    valid = fastjsonschema.compile(schema)
    batch_size = schema["$defs"]["TrainConfig"]["properties"]["batch_size"]
    assert batch_size["description"] == "Samples per micro-batch and rank; auto: auto_batch_size"
    assert (batch_size["default"], batch_size["minimum"], batch_size["unit"]) == (32, 1, "samples")
    for good in (
        {},
        {"train": {"lr": 1e-3, "max_grad_norm": None, "early_stopping": {"patience": 3}}, "scheduler": "step"},
        {"defaults": {"scheduler": "cosine"}, "train": {"learning_rate": 1}, "data": {"seq_len_range": [5, 9]}},
    ):
        valid(good)
    for bad in (
        {"trian": {}},
        {"train": {"batch_sise": 3}},
        {"train": {"batch_size": "32"}},
        {"train": {"optimizer": "adamv"}},
        {"scheduler": "stairs"},
        {"defaults": {"scheduler": "stairs"}},
    ):
        with pytest.raises(fastjsonschema.JsonSchemaValueException):
            valid(bad)


def test_mistakes_are_told_without_a_traceback(spec: App[ToyConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(spec, lambda _: 0, ["lr=x"]) == 2
    assert capsys.readouterr().err == "error: command line: train.lr = x: expected a number, above 0\n"


@pytest.mark.parametrize(("error", "code"), [(UserError("no"), 2), (KeyboardInterrupt(), 130)])
def test_guarded_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as caught:
        guarded(main)
    assert caught.value.code == code


def test_groups_are_the_folders(spec: App[ToyConfig]) -> None:
    choices = {group: list(files) for group, files in group_choices(spec.config_dir).items()}
    assert choices == {"experiment": ["big"], "scheduler": ["cosine", "step"]}


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_sweep_without_end_is_refused_before_it_is_composed() -> None:
    numbers = ",".join(map(str, range(59)))
    with pytest.raises(ConfigError, match=r"a sweep of 12,117,361 jobs; at most 1,000"):
        expand([(name, numbers) for name in "abcd"])
