import json
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import yaml

from mlcore.base.secrets import mask_arguments, mask_secrets, mask_text, register

SECRETS = [
    "plain-secret-1",
    "with \"quotes\" and 'these'",
    "back\\slash\\n",
    "비밀번호-열쇠-하나둘",
    "first-line\nand-second-line",
    "a&b=c d/e?f+g",
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


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
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("write", _WRITERS)
def test_a_secret_is_found_in_every_form(secret: str, write: Callable[[str], str]) -> None:
    os.environ["MLC_ACCESS_TOKEN"] = secret
    masked = mask_text(f"before {write(secret)} after")
    pieces = [text[i : i + 10] for text in (secret, write(secret)) for i in range(len(text) - 9)]
    assert not [piece for piece in pieces if piece in masked]
    assert masked.startswith("before ")
    assert masked.endswith(" after")


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
