"""Settings in all their forms: command lines of every app, YAML and JSON files, values, `.env` files, sweeps."""

import copy
import functools
import importlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from mlcore.base import env
from mlcore.base.files import write_json
from mlcore.cli.app import App
from mlcore.cli.multirun import _load, _plan, _save, _table
from mlcore.cli.parse import parse
from mlcore.config import compose
from mlcore.config.compose import Request, group_choices
from mlcore.config.dump import to_yaml
from mlcore.config.names import NameTable
from mlcore.config.text import Document, dump_value, parse_scalar, read_document
from tests.fuzz.cases import Parser, Record, checks_of, explore, judge

APPS = ("doc_ensemble", "multimodal_ads", "perceiver", "sam_med3d_ich")
YAML = ("&a ", "*a", "<<: *a", "!!bool ", "!!timestamp x", "!!python/object/apply:os.system [x]", "? ", "- ", "|", ">")
JOBS = [[("train.lr", "1e-3"), ("name", "a,b")], [("train.lr", "1e-4"), ("name", "가")]]


def app(name: str) -> App[Any]:
    described: App[Any] = importlib.import_module(f"quartet.apps.{name}.app").APP
    return described


def settings_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def composed(folder: Path) -> object:
    """A file of settings through the real parse."""
    return parse(app("perceiver"), ["--config", str(next(folder.iterdir()))])


def sweep(folder: Path) -> object:
    return [(job.is_alive(), shlex.join(job.overrides)) for job in _load(folder, "digest")], _table(folder, [])


def laughs() -> bytes:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines).encode()


YAML_FOUND = {
    "billion laughs": laughs(),
    "merged laughs": b"a: &a {x: 1}\n"
    + b"".join(b"k%d: &k%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a"] * 50)) for n in range(999)),
    "long integer": b"train: {epochs: 0x" + b"f" * 100_000 + b"}",
    "tag bool": b'train: {compile: !!bool "abc"}',
    "tag timestamp": b'run: {name: !!timestamp "x"}',
    "deep list": b"a: " + b"[" * 5000 + b"]" * 5000,
    "deep block": b"- " * 5000,
    "anchor in itself": b"a: &a [*a]",
    "not UTF-8": b"train: {epochs: \xff}",
    "long name": b"run: {name: " + b"x" * 300 + b"}",
}
JSON_FOUND = {
    "many keys": b"{" + b",".join(b'"k%d":1' % number for number in range(60_000)) + b"}",
    "long integer": b'{"train":{"epochs":' + b"9" * 5000 + b"}}",
    "deep list": b'{"a":' + b"[" * 100_000,
    "half a character": b'{"run":{"name":"\\ud800"}}',
}
PARSERS = [
    Parser(
        name="YAML",
        write=settings_file(
            "own.yaml",
            "# one\ntrain:\n  epochs: 3\n  lr: &a 1e-3\nseed: 7\nrun: {name: 'x', s: [1, 2.5, null, true]}\n",
        ),
        read=lambda folder: read_document(folder / "own.yaml"),
        words=[word.encode() for word in YAML],
        found=YAML_FOUND,
    ),
    Parser(
        name="JSON",
        write=settings_file("own.json", json.dumps({"train": {"epochs": 3, "lr": 1e-3}, "seed": 7, "x": ["가", None]})),
        read=lambda folder: read_document(folder / "own.json"),
        words=[b"\\u0000", b"\\n", b'"a":', b"true", b"-Infinity", b"1E400"],
        found=JSON_FOUND,
    ),
    Parser(
        name="settings in a file",
        write=settings_file(
            "own.yaml", "train:\n  epochs: 3\n  lr: &a 1e-3\nseed: 7\nrun: {name: x}\ndefaults: {scheduler: cosine}\n"
        ),
        read=composed,
        words=[word.encode() for word in (*YAML, "scheduler: ", "model:", "data:", "${env:X", "_target_: os.system")],
        share=0.2,
        lines=50,
    ),
    Parser(
        name="sweep.json",
        write=lambda folder: _save(folder, "digest", _plan(JOBS)),
        read=sweep,
        words=[b"finished", b"running", b"[1, 2]"],
    ),
    Parser(
        name=".env",
        write=settings_file(
            ".env", "# keys\nWANDB_PROJECT=x\nexport HF_HOME='/a b'\nMY_NAME=\"several\nlines\"\nEMPTY=\n"
        ),
        read=lambda folder: env._parse(folder / ".env"),
        words=[b"export ", b"GIT_DIR=x", b"PATH=", b"${X}", b"\\x", b"$(touch x)"],
    ),
]

test_a_damaged_file_is_a_value_or_one_error, test_inputs_that_went_wrong_once = checks_of(PARSERS)


# ------------------------------------------------------------------------------------------------------- command lines

VALUES = (
    *(
        "*2",
        "@x",
        "%x",
        "!!bool abc",
        "!!timestamp x",
        "[" * 3000,
        "9" * 5000,
        "0x" + "f" * 9000,
        "1e999",
        "nan",
        "-1",
        "a,b",
    ),
    *(
        "{a: &a [x, x], b: [*a, *a]}",
        "<<: x",
        "${env:HOME}",
        "${env:NONE}",
        "${",
        "null",
        "~",
        "[]",
        "{}",
        "''",
        '"',
        "\\",
    ),
    *(
        "\udcff.csv",
        "x" * 300,
        "\0",
        "\n",
        "\x1b[2J",
        "a\u2028b",
        "/dev/zero",
        "/",
        "..",
        "none.yaml",
        "cosine",
        "가",
        "=",
        "# x",
    ),
)
WORDS = (
    *(
        "-m",
        "--demo",
        "--dry_run",
        "--test",
        "--lr_find",
        "--cfg",
        "--cfg=schema",
        "--print_config",
        "--config",
        "-h",
        "--help=train",
    ),
    *(
        "--help=x",
        "--completion=bash",
        "--completion=x",
        "+experiment=x",
        "--",
        "-",
        "---",
        "--=",
        "=",
        "--no_x",
        "-1",
        "--no_cache=1",
    ),
)


@functools.cache
def names_of(name: str) -> tuple[list[str], list[str]]:
    """Every name of a setting, section or group of an app, and what messages name of them."""
    described = app(name)
    table = NameTable(described.config_cls)
    groups = [
        f"{group}={choice}" for group, choices in group_choices(described.config_dir).items() for choice in choices
    ]
    return [*table.names(), *table.sections, "experiment", "no_such"], groups


def command_lines(name: str) -> st.SearchStrategy[list[str]]:
    """Arguments for an app."""
    names, groups = names_of(name)
    key = st.sampled_from(names)
    value = st.sampled_from(VALUES) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)
    sweep = st.lists(value, min_size=2, max_size=40).map(",".join)
    spelled = st.sampled_from(["--{}={}", "{}={}", "--no_{}", "+{}={}", "--{}"])
    setting = st.builds(lambda form, name, text: [form.format(name, text)], spelled, key, value | sweep)
    apart = st.builds(lambda name, text: [f"--{name}", text], key, value)
    word = st.sampled_from([*WORDS, *groups]).map(lambda word: [word])
    return st.lists(setting | apart | word | value.map(lambda text: [text]), max_size=3).map(
        lambda parts: [argument for part in parts for argument in part]
    )


@pytest.fixture(autouse=True)
def _own_files_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of `configs/` are no case; they take most of the time."""
    known: dict[Path, Document] = {}

    def read(path: Path) -> Document:
        if "configs" not in path.parts:
            return read_document(path)
        known.setdefault(path, read_document(path))
        return copy.deepcopy(known[path])

    monkeypatch.setattr(compose, "read_document", read)


@pytest.mark.parametrize("name", APPS)
def test_command_lines(name: str, tmp_path: Path, record_property: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    described, table = app(name), names_of(name)[0]

    def check(argv: list[str]) -> str:
        parsed: list[Any] = []
        names = ["command line", "environment variable", "no such configuration file", *table]
        outcome = judge(lambda: parsed.append(parse(described, argv)), names=names, lines=100, exits=True)
        for invocation in parsed:
            described.folder_of_runs(invocation)
            written_and_read(described, invocation.config, tmp_path / "again.yaml")
        return outcome

    explore(command_lines(name), check, share=0.5, record=record_property)


def written_and_read(described: App[Any], config: Any, path: Path) -> None:
    """A configuration is the same once it is printed and read."""
    text = to_yaml(config)
    if "***" not in text:
        path.write_text(text, encoding="utf-8")
        request = Request(files=[path], base=described.base)
        assert compose.compose(described.config_cls, described.config_dir, request, environ={}).config == config


@pytest.mark.parametrize(
    "argv",
    [
        ["epochs=*2"],
        ["--lr", "@x"],
        ["--lr", "!!bool abc"],
        ["--epochs", "9" * 5000],
        ["x=" + "[" * 3000],
        ["--config", ""],
        ["--config", "[" * 3000],
    ],
)
def test_command_lines_that_went_wrong_once(argv: list[str]) -> None:
    for name in APPS:
        assert judge(lambda name=name: parse(app(name), argv), names=["command line", "[[["], lines=9) == "refused"


def test_a_sweep_of_59_to_the_power_of_4_is_refused_before_it_is_made() -> None:
    values = ",".join(map(str, range(59)))
    argv = ["-m", *(f"{name}={values}" for name in ("lr", "weight_decay", "seed", "epochs"))]
    assert judge(lambda: parse(app("perceiver"), argv), names=["a sweep of 12,117,361 jobs"]) == "refused"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def test_values_are_read_as_they_are_written(tmp_path: Path, record_property: Record) -> None:
    path = tmp_path / "own.json"

    def check(value: Any) -> str:
        again = parse_scalar(dump_value(value))
        assert again == value
        assert type(again) is type(value)
        write_json(path, {"x": value})
        read: list[Document] = []
        outcome = judge(lambda: read.append(read_document(path)), names=[path.name])
        assert outcome == "refused" or read[0].values == {"x": value} or "Infinity" in json.dumps(value)
        return outcome

    explore(PLAIN, check, record=record_property)
