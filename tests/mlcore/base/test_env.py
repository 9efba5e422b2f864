import os
from pathlib import Path

import pytest

from mlcore.base import env
from mlcore.base.env import (
    NAMED,
    child_environment,
    env_notes,
    environment,
    load_env,
    project_root,
    wandb_key_source,
)
from mlcore.base.errors import UserError
from mlcore.base.secrets import mask_text
from mlcore.config.names import Leaf
from mlcore.config.sections import CheckpointConfig, RunConfig, TrackingConfig, TrainConfig

_MORE = ("HF_TOKEN", "S3_BUCKET_NAME")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """load_env changes the environment; everything here is put back."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(env, "_other", {})
    monkeypatch.setattr(env, "_notes", [])
    monkeypatch.chdir(tmp_path)
    for name in (
        "WANDB_API_KEY",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_BASE_URL",
        "WANDB_MODE",
        "NETRC",
        "HF_TOKEN",
        "S3_BUCKET_NAME",
    ):
        os.environ.pop(name, None)
    os.environ["HOME"] = str(tmp_path / "home")


def test_only_the_checkouts_file_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, current = tmp_path / "root", tmp_path / "current"
    root.mkdir()
    current.mkdir()
    (root / ".env").write_text("WANDB_PROJECT=root\nWANDB_ENTITY=root\nS3_BUCKET_NAME='bucket # no comment'\n")
    (current / ".env").write_text("WANDB_ENTITY=anybody\nWANDB_MODE=offline\n")
    os.environ["WANDB_PROJECT"] = "shell"
    monkeypatch.chdir(current)
    assert load_env(root=root) == [root / ".env"]
    found = [os.environ.get(name) for name in ("WANDB_PROJECT", "WANDB_ENTITY", "S3_BUCKET_NAME", "WANDB_MODE")]
    assert found == ["shell", "root", "bucket # no comment", None]
    assert f"{current / '.env'} is not read" in caplog.text
    os.environ[NAMED] = str(current)
    assert load_env(root=root) == [current / ".env"]
    assert os.environ["WANDB_MODE"] == "offline"


def test_no_file_is_fine_and_a_named_one_must_be_there(tmp_path: Path) -> None:
    assert load_env(root=tmp_path) == []
    os.environ[NAMED] = str(tmp_path / "mine.env")
    with pytest.raises(UserError, match=rf"{NAMED}=.*mine.env: there is no file"):
        load_env(root=tmp_path)


@pytest.mark.parametrize(
    "name",
    ["GIT_SSH_COMMAND", "GIT_CONFIG_COUNT", "LD_PRELOAD", "PYTHONSTARTUP", "PYTHONPATH", "PATH_X_PATH", "https_proxy",
     "HTTP_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
     "AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL_S3", "WANDB_API_URL", "WANDB_DIR", "WANDB_CONFIG_DIR",
     "HF_HUB_CACHE", "NETRC", "NCCL_NET_PLUGIN", "BASH_ENV"],
)  # fmt: skip
def test_a_file_sets_no_variable_that_starts_programs_or_leads_elsewhere(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.environ.pop(name, None)
    (tmp_path / ".env").write_text(f"{name}=x\n")
    load_env(root=tmp_path)
    assert name not in os.environ
    assert f"{name} is not taken" in caplog.text
    assert any(name in note for note in env_notes())


def test_other_names_serve_settings_and_are_no_variables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".env").write_text("DATA_DIR=/data\nMY_TOKEN=abcdefgh-12345678\n")
    load_env(root=tmp_path)
    assert environment()["DATA_DIR"] == "/data"
    assert "DATA_DIR" not in os.environ
    assert mask_text("Bearer abcdefgh-12345678") == "Bearer ***"
    assert not caplog.text


@pytest.mark.parametrize(
    ("address", "key"),
    [("WANDB_BASE_URL", "WANDB_API_KEY"), ("AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"), ("HF_ENDPOINT", "HF_TOKEN")],
)
def test_an_address_gets_only_keys_of_its_own_file(
    address: str, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = "AWS_ACCESS_KEY_ID=id\n" if key.startswith("AWS") else ""
    (tmp_path / ".env").write_text(f"{address}=https://elsewhere.example\n{other}")
    os.environ[key] = "key of the shell"
    load_env(root=tmp_path)
    assert address not in os.environ
    assert f"{address} is not taken: it must come from where" in caplog.text
    (tmp_path / ".env").write_text(f"{address}=https://elsewhere.example\n{other}{key}=key of the file\n")
    load_env(root=tmp_path)
    assert address not in os.environ, "the shell's key wins and would be sent there"
    del os.environ[key]
    load_env(root=tmp_path)
    assert (os.environ[address], os.environ[key]) == ("https://elsewhere.example", "key of the file")


def test_every_variable_of_a_setting_is_taken_from_a_file(tmp_path: Path) -> None:
    sections = (RunConfig, TrainConfig, CheckpointConfig, TrackingConfig)
    backed = {Leaf(name, info).meta.env for cls in sections for name, info in cls.model_fields.items()} - {None}
    (tmp_path / ".env").write_text("".join(f"{name}=value\n" for name in backed))
    for name in backed:
        os.environ.pop(str(name), None)
    load_env(root=tmp_path)
    assert backed
    assert all(os.environ.get(str(name)) == "value" for name in backed)


def test_programs_that_need_no_secret_get_none() -> None:
    os.environ.update({"WANDB_API_KEY": "abcdefgh-12345678", "HTTPS_PROXY": "http://me:word@proxy:3128", "LANG": "C"})
    child = child_environment()
    assert not {"WANDB_API_KEY", "HTTPS_PROXY"} & child.keys()
    assert child["LANG"] == "C"


def test_a_line_that_is_nothing_but_a_key_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("sk-0123456789abcdef\n")
    with pytest.raises(UserError, match=r"line 1: expected NAME=value") as told:
        load_env(root=tmp_path)
    assert "sk-0" not in str(told.value)


def test_addresses_in_a_file_give_their_passwords_away_to_nobody(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE=postgres://me:pass-word-1@host/x\n")
    load_env(root=tmp_path)
    assert mask_text("login failed with pass-word-1") == "login failed with ***"


def test_a_line_without_a_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("A=1\n\nWANDB_API_KEY\n")
    with pytest.raises(UserError, match=r"\.env, line 3: expected NAME=value"):
        load_env(root=tmp_path)


def test_a_line_that_cannot_be_read_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('A="1"\ngarbage line "\n')
    with pytest.raises(UserError, match=r"\.env: damaged or not lines NAME=value \(cannot read line 2\)"):
        load_env(root=tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe\x00")
    with pytest.raises(UserError, match=r"\.env: damaged or not UTF-8 text with lines NAME=value"):
        load_env(root=tmp_path)


def test_the_project_root_is_found_from_below(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert project_root(tmp_path / "a" / "b") == tmp_path


def test_where_wandb_finds_its_key(tmp_path: Path) -> None:
    assert wandb_key_source() is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("machine my.server login user password secret\n")
    assert wandb_key_source() is None
    os.environ["WANDB_BASE_URL"] = "https://my.server"
    assert wandb_key_source() == str(tmp_path / "home" / ".netrc")
    os.environ["WANDB_API_KEY"] = "x"
    assert wandb_key_source() == "WANDB_API_KEY"
