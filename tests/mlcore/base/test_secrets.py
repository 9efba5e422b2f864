import csv
import html
import io
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import jinja2
import pytest
import yaml

from mlcore.base import secrets
from mlcore.base.files import csv_text, write_json, write_text
from mlcore.base.secrets import (
    mask_arguments,
    mask_known,
    mask_secrets,
    mask_text,
    note,
    note_arguments,
    register,
    shown,
    visible,
)
from mlcore.config.dump import dump_value

SECRETS = [
    "plain-secret-1",
    "with \"quotes\" and 'these'",
    "back\\slash\\n",
    "비밀번호-열쇠-하나둘",
    "first-line\nand-second-line",
    "a&b=c d/e?f+g",
    "<b>'it''s'</b> // \"\"x\"\"",
    "열쇠 é ñ " * 30 + "end",
    "long words of one value " * 10 + "end",
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(secrets, "_registered", set())


@pytest.mark.parametrize(
    "key",
    ["api_key", "apikey", "aws_secret_access_key", "wandb.api_key", "hf_token", "token", "password", "db-password",
     "client_secret", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "MY_KEY", "GITHUB_TOKEN", "DB_PASSWORD"],
)  # fmt: skip
def test_secret_keys_are_masked_at_any_depth(key: str) -> None:
    assert mask_secrets({"a": [{"b": {key: "x"}}]}) == {"a": [{"b": {key: "***"}}]}


@pytest.mark.parametrize(
    "key",
    ["image_key", "key", "pad_token", "tokenizer", "max_tokens", "monitor", "keypoints", "monkey", "secretary"],
)
def test_other_keys_are_not(key: str) -> None:
    assert mask_secrets({key: "value"}) == {key: "value"}


def test_what_is_not_a_string_stays() -> None:
    values = {"token": 5, "password": None, "api_key": "", "learning_rate": 1e-3, "flag": True}
    assert mask_secrets(values) == values


def test_the_mapping_itself_is_not_changed() -> None:
    values = {"wandb": {"api_key": "x"}}
    mask_secrets(values)
    assert values == {"wandb": {"api_key": "x"}}


def test_secrets_inside_other_text_are_masked() -> None:
    os.environ.update({"MLC_ACCESS_TOKEN": "abcdefgh-12345678", "MLC_SHORT_TOKEN": "abc"})
    text = "abc --url=https://me:pass@host/x --auth abcdefgh-12345678 AKIAABCDEFGHIJKLMNOP"
    assert mask_text(text) == "abc --url=https://***@host/x --auth *** ***"
    assert mask_secrets({"command": ["run", "abcdefgh-12345678"]}) == {"command": ["run", "***"]}


_WRITERS: list[Callable[[str], str]] = [
    str,
    repr,
    json.dumps,
    lambda s: json.dumps(s, ensure_ascii=False),
    quote,
    quote_plus,
    lambda s: quote(s, safe=""),
    lambda s: yaml.safe_dump({"a": s}, width=1000),
    lambda s: yaml.safe_dump(s, allow_unicode=True),
    lambda s: yaml.safe_dump({"a": {"b": s}}),
    lambda s: yaml.safe_dump({"a": {"b": s}}, allow_unicode=True, width=40),
    lambda s: yaml.safe_dump({"a": [s]}, default_style='"', width=30),
    lambda s: yaml.safe_dump({"a": [s]}, default_style="'", width=30),
    lambda s: yaml.safe_dump({"a": [s]}, default_style="|"),
    dump_value,
    ascii,
    html.escape,
    lambda s: jinja2.Environment(autoescape=True).from_string("<p>{{ s }}</p>").render(s=s),
    lambda s: json.dumps({"nested": json.dumps({"value": s})}),
    lambda s: repr([{"a": repr(s)}]),
    lambda s: csv_text([["a", s, 1]]),
    lambda s: shlex.join(["train.py", f"x={s}"]),
    lambda s: quote(s).lower(),
    lambda s: s.replace("_", r"\_").replace("*", r"\*"),
    lambda s: "".join(f"  | {line}\n" for line in s.splitlines()),
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("write", _WRITERS)
def test_a_secret_is_found_in_every_form(secret: str, write: Callable[[str], str]) -> None:
    os.environ["MLC_ACCESS_TOKEN"] = secret
    masked = mask_text(f"before {write(secret)} after")
    around = f"before {write('')} after"
    assert not [secret[i : i + 10] for i in range(len(secret) - 9) if secret[i : i + 10] in masked]
    # Nothing is left but what is around it, and quotes or brackets at its ends.
    assert len(masked.replace("***", "")) <= len(around) + 20
    assert masked.startswith("before ")
    assert masked.endswith(" after")
    assert "***" in masked


def test_a_path_swallows_a_slash_of_an_address() -> None:
    os.environ["MLC_ACCESS_TOKEN"] = "https://host/with-token"  # noqa: S105 (not a real one)
    assert mask_text(str(Path("https://host/with-token") / "x")) == "***/x"
    assert mask_text(str(Path("s3://me:pass@host/x"))) == "s3:/***@host/x"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://token123@host/x", "https://***@host/x"),
        ("https://host/x?token=abc&size=3", "https://host/x?token=***&size=3"),
        ("https://host/x?a=1&X-Amz-Signature=abc#end", "https://host/x?a=1&X-Amz-Signature=***#end"),
        ("https://host/x?X-Amz-Credential=a%2Fb&sig=abc", "https://host/x?X-Amz-Credential=***&sig=***"),
        ("train.py --hub-token=abc --lr 1", "train.py --hub-token=*** --lr 1"),
        ("train.py hub.api_key=abc lr=1", "train.py hub.api_key=*** lr=1"),
    ],
)
def test_what_has_the_form_of_a_secret_is_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_a_command_line_hides_what_follows_the_flag_of_a_secret() -> None:
    given = ["train.py", "--hub_token", "abc", "--api-key=x y", "--password", "--lr", "1", "--image_key", "a"]
    expected = ["train.py", "--hub_token", "***", "--api-key=*** y", "--password", "--lr", "1", "--image_key", "a"]
    assert mask_arguments(given) == expected


@pytest.mark.parametrize(
    "text",
    ["the password is wrong, the token too", "pad_token=0 max_tokens=5", "see https://host/a@2x.png",
     "key=3 --image_key=x",
     "me@host.example: 3 samples", "2 of 3 secrets", "s3://bucket/a@b/c", "C:/data@x/y"],
)  # fmt: skip
def test_ordinary_text_stays(text: str) -> None:
    assert mask_text(text) == text


def test_a_registered_value_is_a_secret() -> None:
    register("registered-value-1")
    assert mask_text("a registered-value-1 b") == "a *** b"


def test_values_that_are_read_again_keep_what_only_looks_like_a_secret() -> None:
    os.environ["MLC_ACCESS_TOKEN"] = "abcdefgh-12345678"  # noqa: S105 (not a real one)
    values = {
        "path": "/data/token=bert/x.csv",
        "url": "https://me:pass@host/x?token=a",
        "password": "x",
        "a": "abcdefgh-12345678",
    }
    kept = {"path": "/data/token=bert/x.csv", "url": "https://***@host/x?token=***", "password": "***", "a": "***"}
    assert mask_secrets(values, reload=True) == kept


def test_long_lines_are_masked_in_no_time() -> None:
    # Quadratic patterns take minutes for these; pytest's own limit is the judge.
    for piece in ("-", ".", "a-", "a.", "?", "://", "token", "=", "?a-"):
        mask_text(piece * 200_000)


def test_what_stands_around_a_secret_stays_as_it_was() -> None:
    register('a "quoted" secret')
    before, after = "path\\to//file 'it''s'\n\n   ", '\n  "more" \\n //'
    for text in ('a "quoted" secret', r"a \"quoted\" secret", 'a ""quoted"" secret', 'a\n    "quoted"\n    secret'):
        assert mask_known(f"{before}{text}{after}{text}") == f"{before}***{after}***"
    assert mask_known(f"{before}{after}") == f"{before}{after}"


def test_a_secret_of_digits_is_no_part_of_a_number() -> None:
    register("12345678")
    assert mask_known("0.12345678 912345678 pin=12345678, 12345678.") == "0.12345678 912345678 pin=***, ***."


@pytest.mark.parametrize(
    "name",
    ["AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "SSL_KEY_PATH"],
)
def test_a_variable_that_names_a_place_holds_no_secret(name: str) -> None:
    assert mask_secrets({name: "/home/me/place"}) == {name: "/home/me/place"}


@pytest.mark.parametrize(
    ("address", "secret"),
    [
        ("https://me:pass-word-1@host/x", "pass-word-1"),
        ("https://token-of-mine@host/x", "token-of-mine"),
        ("https://me:p%40ss%2Fword@host/x", "p@ss/word"),
        ("s3:/me:pass-word-1@host/x", "pass-word-1"),
        ('https://me:pa"ss\\wörd 열쇠\n1@host/x', 'pa"ss\\wörd 열쇠\n1'),
        ("https://host/x?a=1&token=qwertz-123&b=2", "qwertz-123"),
        ("https://host/x?X-Amz-Signature=0123abcd4567", "0123abcd4567"),
        ("https://host/x?X-Amz-Credential=MYKEY%2F2024%2Fus", "MYKEY/2024/us"),
    ],
    ids=range(8),  # pytest puts names of tests into the environment
)
def test_what_an_address_carries_for_its_host_is_known_everywhere_from_then_on(address: str, secret: str) -> None:
    assert mask_known(f"refused: {secret}!") == f"refused: {secret}!"
    note("data.place", [{"inner": address}])
    assert mask_known(f"refused: {secret}!") == "refused: ***!"
    assert mask_known("https://host/x") == "https://host/x"


def test_addresses_in_variables_are_known() -> None:
    os.environ["HTTPS_PROXY"] = "http://user:proxy-pass-1@proxy:3128"
    os.environ["SOME_PATH"] = "/usr/bin:/opt/node@20/bin:s3://bucket/dir@x/y"
    assert (
        mask_known("407 for proxy-pass-1, node@20, s3://bucket/dir@x/y") == "407 for ***, node@20, s3://bucket/dir@x/y"
    )


def test_the_secrets_of_a_command_line_are_known() -> None:
    note_arguments(["train.py", "--hub_token", "first-value", "hub.api_key=second-value", "--password=third=value",
                    "--lr", "ordinary-value", "https://a:fourth-value@h", "https://h/?token=fifth-value"])  # fmt: skip
    told = "first-value second-value third=value ordinary-value fourth-value fifth-value"
    assert mask_known(told) == "*** *** *** ordinary-value *** ***"


def test_no_text_file_holds_a_secret(tmp_path: Path) -> None:
    register("with \"quotes\" and 'these'")
    write_text(tmp_path / "a.txt", "see with \"quotes\" and 'these'.")
    write_json(tmp_path / "a.json", {"why": "with \"quotes\" and 'these'", "n": 1})
    write_text(tmp_path / "a.csv", csv_text([["x", "with \"quotes\" and 'these'", 0.5]]))
    assert (tmp_path / "a.txt").read_text("utf-8") == "see ***."
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"why": "***", "n": 1}
    assert list(csv.reader(io.StringIO((tmp_path / "a.csv").read_text("utf-8")))) == [["x", "***", "0.5"]]


def test_control_characters_are_shown_and_all_else_stays() -> None:
    name = "a\x1b[31mred\r\x07\x9b\u202eexe.\u2066txt\x7f\udcff"
    assert visible(name) == r"a\x1b[31mred\r\x07\x9b\u202eexe.\u2066txt\x7f\udcff"
    ordinary = "한국어\tZahl é 😀\nline two \\ 'x'"
    assert visible(ordinary) == ordinary
    register("secret-value")
    assert shown("\x1b secret-value") == r"\x1b ***"


def test_long_texts_are_searched_in_no_time() -> None:
    register("a" * 20)
    # Quadratic patterns take minutes for these; pytest's own limit is the judge.
    for piece in ("\n", "\n ", "\\\n", "\\", "//", "''", "a\n", "a\\", "a" * 19 + "\n "):
        assert mask_known(f"{piece * 50_000}{'a' * 20}").endswith("***")
