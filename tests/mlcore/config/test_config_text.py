"""Reading and writing YAML and JSON: YAML 1.2 scalars, duplicates, lines, round trips."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from mlcore.config.text import ConfigError, dump_value, parse_scalar, read_document


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E5", 2e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("on", "on"),
        ("null", None),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("2024-01-31", "2024-01-31"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("1e", "1e"),
        ("[50, 200]", [50, 200]),
        ("[a, 1e-3]", ["a", 1e-3]),
        ("'1e-4'", "1e-4"),
        ("#1", "#1"),
        ("a #b", "a #b"),
        ("['a #1', b]", ["a #1", "b"]),
        ("[1, 2] #3", "[1, 2] #3"),
        ("[unclosed", "[unclosed"),
        ("a: b: c", "a: b: c"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_infinity_and_nan_are_floats() -> None:
    assert parse_scalar("-.inf") == float("-inf")
    assert parse_scalar(".NaN") != parse_scalar(".NaN")


@pytest.mark.parametrize(
    "value",
    [
        1e-5,
        1e20,
        3,
        True,
        None,
        "1e-4",
        "yes",
        "null",
        "",
        "0x10",
        "a: b",
        "#x",
        "한국어",
        [1, "2", None],
        {"a": [1.5]},
    ],
)
def test_dumped_values_read_back_equal_and_fit_on_one_line(value: object) -> None:
    text = dump_value(value)
    assert "\n" not in text
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


def test_text_that_yaml_1_1_reads_otherwise_is_quoted() -> None:
    assert yaml.safe_load(dump_value("yes")) == "yes"


def test_lines_of_nested_keys(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, "a.yaml", "# comment\ntrain:\n  lr: 1\n\n  tags: [{a: 2}]\n"))
    assert document.values == {"train": {"lr": 1, "tags": [{"a": 2}]}}
    (train,) = document.values
    lr, tags = document.values["train"]
    (inner,) = document.values["train"]["tags"][0]
    assert [document.where(key).rpartition("a.yaml")[2] for key in (train, lr, tags, inner)] == [":2", ":3", ":5", ":5"]
    assert document.where("no key of the file") == document.name


def test_a_key_that_a_mapping_sets_itself_stands_where_the_mapping_sets_it(tmp_path: Path) -> None:
    text = "base: &base\n  lr: 1\n  seed: 1\nuse:\n  <<: *base\n  lr: 2\n"
    document = read_document(write(tmp_path, "a.yaml", text))
    where = {str(key): document.where(key).rpartition(":")[2] for key in document.values["use"]}
    assert where == {"lr": "6", "seed": "3"}


def test_keys_are_text_as_written(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, "a.yaml", "1: a\nnull: b\ntrue: c\n")).values == {
        "1": "a",
        "null": "b",
        "true": "c",
    }


def test_a_value_of_a_file_can_be_shown(tmp_path: Path) -> None:
    assert dump_value(read_document(write(tmp_path, "a.yaml", "a: {b: 1}\n")).values["a"]) == "{b: 1}"


def test_json_keeps_lines_and_accepts_tabs(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '{\n\t"lr": 1e-4,\n\t"text": "a\\/b \\ud83d\\ude00"\n}')
    document = read_document(path)
    assert document.values == json.loads(path.read_text("utf-8"))
    assert document.where("text") == document.name  # YAML reads \\ud83d otherwise, so the lines are not trusted
    path.write_text('{\n\t"lr": 1e-4,\n\t"text": "a"\n}')
    document = read_document(path)
    assert [document.where(key).rpartition("a.json")[2] for key in document.values] == [":2", ":3"]


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_empty_file_has_no_values(tmp_path: Path, name: str) -> None:
    assert read_document(write(tmp_path, name, "\n")).values == {}


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbflr: 1\n")
    assert read_document(tmp_path / "a.yaml").values == {"lr": 1}


def test_merge_keys_and_anchors(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nother: &other {a: 5, c: 6}\nuse:\n  <<: [*base, *other]\n  b: 3\nagain: *base\n"
    values = read_document(write(tmp_path, "a.yaml", text)).values
    assert values["use"] == {"a": 1, "b": 3, "c": 6}
    assert values["again"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "train:\n  lr: 1\n  lr: 2\n", r"a\.yaml:3: key 'lr' appears twice \(first in line 2\)"),
        ("a.json", '{"lr": 1, "lr": 2}', r"a\.json:1: key 'lr' appears twice"),
        ("a.yaml", "a: 1\nb: [1, 2\nc: 3\n", r"a\.yaml:3: not valid YAML"),
        ("a.yaml", "a: 1\n\tb: 2\n", r"a\.yaml:2: not valid YAML"),
        ("a.json", '{\n"a": 1,\n}', r"a\.json:3: not valid JSON"),
        ("a.yaml", "- 1\n- 2\n", r"a\.yaml: expected `key: value` pairs at the top, found a list"),
        ("a.yaml", "just text\n", r"found a str"),
        ("a.yaml", "? [1, 2]\n: 3\n", r"a\.yaml:1: a key must be a plain name"),
        ("a.yaml", "a: &a [*a]\n", r"contains itself"),
        ("a.yaml", "a: 1\n---\nb: 2\n", r"not valid YAML"),
        ("a.yaml", "<<: 3\n", r"a\.yaml:1: not valid YAML: expected a mapping"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_document(write(tmp_path, name, text))


def test_no_object_is_built_from_a_tag(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = write(tmp_path, "a.yaml", f"a: !!python/object/apply:os.mkdir ['{canary}']\nb: !!python/name:os.system\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: .*python/object/apply"):
        read_document(path)
    assert not canary.exists()


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such configuration file"):
        read_document(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"b\.yaml: damaged or not valid YAML in UTF-8"):
        read_document(tmp_path / "b.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_document(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!bool abc", "file.yaml:1: not valid YAML: the value is no bool"),
        ("a: !!int x", "file.yaml:1: not valid YAML: the value is no int"),
        ("a: !!timestamp x", "is not read; write the value itself"),
        ("a: !!binary x", "is not read; write the value itself"),
        ("a: !!set {b}", "is not read; write the value itself"),
        (f"a: {'9' * 5000}", "a number of 5000 digits; at most 100 are read"),
        (f"a: 0x{'f' * 300_000}", "a number of 300002 digits"),
        (f"a: {'[' * 20_000}", "nested too deeply"),
        ("a: &x {b: *x}", "an anchor of this file contains itself"),
    ],
)
def test_what_is_no_setting_is_refused_with_its_file(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_document(write(tmp_path, "file.yaml", text))
    assert problem in str(caught.value)
    assert "file.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 200_000, "nested too deeply"),
        (f'{{"a": {"9" * 5000}}}', "a number of 5000 digits"),
        ("{", "not valid JSON"),
    ],
)
def test_json_that_cannot_be_read_is_refused_with_its_file(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"file\.json.*{problem}"):
        read_document(write(tmp_path, "file.json", text))


def test_anchors_cannot_blow_up_a_file(tmp_path: Path) -> None:
    letters = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in itertools.pairwise(letters)]
    with pytest.raises(ConfigError, match="more than 20,000 values once its anchors are written out"):
        read_document(write(tmp_path, "file.yaml", "\n".join(lines)))


def test_a_file_too_large_for_settings_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        read_document(write(tmp_path, "file.yaml", "a: " + "x" * 5 * 2**20))


@pytest.mark.parametrize("text", ["!!bool abc", "!!timestamp x", "[" * 3000, "9" * 5000, "*a", "@x", "%x"])
def test_on_the_command_line_the_same_is_text(text: str) -> None:
    assert parse_scalar(text) == text
