import os
from pathlib import Path

import pytest

from mlcore.base.env import load_env, mask_secrets, mask_text, project_root, wandb_key_source
from mlcore.base.errors import UserError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """load_env changes the environment; everything here is put back."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        os.environ.pop(name, None)
    os.environ["HOME"] = str(tmp_path / "home")


def test_the_environment_wins_then_the_current_folder_then_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, current = tmp_path / "root", tmp_path / "current"
    root.mkdir()
    current.mkdir()
    (root / ".env").write_text("MLC_A=root\nMLC_B=root\nMLC_C='root # no comment'\n")
    (current / ".env").write_text("# mine\nexport MLC_A=current\nMLC_B=current\n")
    os.environ["MLC_A"] = "shell"
    monkeypatch.chdir(current)
    assert load_env(root=root) == [current / ".env", root / ".env"]
    assert [os.environ[name] for name in ("MLC_A", "MLC_B", "MLC_C")] == ["shell", "current", "root # no comment"]


def test_no_file_is_fine_and_one_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_env(root=tmp_path) == []
    (tmp_path / ".env").write_text("MLC_A=1\n")
    assert load_env(root=tmp_path) == [tmp_path / ".env"]


def test_a_line_without_a_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("A=1\n\nWANDB_API_KEY\n")
    with pytest.raises(UserError, match=r"\.env, line 3: expected NAME=value"):
        load_env(root=tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe\x00")
    with pytest.raises(UserError, match=r"\.env: cannot be read"):
        load_env(root=tmp_path)


def test_the_project_root_is_found_from_below(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert project_root(tmp_path / "a" / "b") == tmp_path


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


def test_where_wandb_finds_its_key(tmp_path: Path) -> None:
    assert wandb_key_source() is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine my.server login user password secret\n")
    assert wandb_key_source() is None
    os.environ["WANDB_BASE_URL"] = "https://my.server"
    assert wandb_key_source() == str(tmp_path / "home" / ".netrc")
    os.environ["WANDB_API_KEY"] = "x"
    assert wandb_key_source() == "WANDB_API_KEY"
