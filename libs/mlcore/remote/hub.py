"""Published models as folders: found on the disk or fetched from the Hugging Face hub; read without executing anything.

A model is asked for by a folder or by its name on the hub. What the hub's cache holds completely is used as it is,
without asking the network, so that runs of a sweep start at once and with the same weights; `HF_HUB_OFFLINE=1` is
respected.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from safetensors import safe_open
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.remote.model_folder import check_model_folder, check_safetensors, json_value
from mlcore.training.checkpoint import bare_weights, load_checkpoint

__all__ = [
    "HUB",
    "fetch_model",
    "find_model",
    "plain_arguments",
    "publish",
    "read_json",
    "read_weights",
    "weight_files",
    "writer",
]

_log = logging.getLogger(__name__)

HUB = "hub:"
"""What the name of a model on the hub begins with where a path could stand."""

_REFUSED = {
    401: "the hub does not accept the token in HF_TOKEN (401); make a new one that may write there",
    403: "the token in HF_TOKEN may not write there (403); ask for the right, or use a name of your own",
}
_SCALARS = (bool, int, float, str)
_TIMEOUT = 10.0  # seconds; one try: whoever is offline learns it at once
_TEXT_FILES = ["*.json", "*.txt", "*.model"]
_OTHER_FORMATS = ["onnx/*", "openvino/*", "*.onnx*", "*.msgpack", "*.h5", "*/checkpoints/*"]


def find_model(name: str, *, setting: str, ways_out: str = "") -> Path:
    """The folder of a published model.

    Args:
        name: A folder, or a name on the hub such as "google/siglip2-base-patch16-224".
        setting: The configuration key that `name` comes from, for messages.
        ways_out: What else the user can do where the weights cannot be had; added to messages.

    Returns:
        A folder with `config.json` and weights.

    Raises:
        UserError: No such folder, no such model, the hub cannot be reached and its cache lacks the model, or the folder
            asks for more than to be read; see `check_model_folder`.
    """
    folder = _found(name, setting=setting, ways_out=ways_out)
    check_model_folder(folder)
    return folder


def _found(name: str, *, setting: str, ways_out: str) -> Path:
    folder = Path(name).expanduser()
    on_hub = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name)
    if folder.is_dir():
        if on_hub:  # anybody may have put it there
            _log.info("%s: %s is the folder %s, not the hub's model of that name", setting, name, folder.absolute())
        return folder
    if not on_hub:
        raise UserError(f"{setting}: {name} is not a folder (and cannot be a name on the hub). {ways_out}".rstrip())
    advice = (
        f"Ways out: fetch it on a machine with network (`hf download {name} --local-dir FOLDER`) and set "
        f"{setting}=FOLDER. {ways_out}"
    ).rstrip()
    cached = _cached(name)
    if cached is not None:
        return cached
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{setting}: the weights of {name} cannot be had: HF_HUB_OFFLINE is set, and the hub's cache has no "
            f"complete copy. {advice}"
        )
    with _explained(f"{setting}: the weights of {name} cannot be had", f" {advice}"):
        return _download(name)


def fetch_model(address: str) -> Path:
    """The folder of a model that `publish` put on the hub, all of its files.

    Args:
        address: `hub:NAME`, or `hub:NAME@REVISION`.

    Raises:
        UserError: There is none, it cannot be had, or the folder asks for more than to be read.
    """
    name, _, revision = address.removeprefix(HUB).partition("@")
    with _explained(f"{address}: cannot be had", ""):
        folder = Path(snapshot_download(name, revision=revision or None, etag_timeout=_TIMEOUT))
    check_model_folder(folder)
    return folder


def writer(address: str) -> HfApi:
    """What `publish` writes with; the token comes from the environment variable HF_TOKEN alone.

    Raises:
        UserError: It is not set, or there is to be no network.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError(f"{address}: cannot be written: HF_TOKEN is not set; set it to a token that may write there")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{address}: cannot be written: HF_HUB_OFFLINE is set; unset it where there is a network")
    return HfApi(token=token)


def publish(folder: Path, address: str, *, api: HfApi, private: bool, revision: str | None, title: str) -> str:
    """Put a folder on the hub as one commit.

    Args:
        folder: All files in it.
        address: `hub:NAME`; the repository is made where there is none.
        api: From `writer`.
        private: Whether a new repository is.
        revision: Branch, made where there is none; None: main.
        title: Of the commit.

    Returns:
        The commit's address.

    Raises:
        UserError: The hub refuses it or cannot be reached, and why.
    """
    name = address.removeprefix(HUB)
    with _explained(f"{address}: cannot be written", ""):
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=title))


@contextmanager
def _explained(what: str, advice: str) -> Iterator[None]:
    """Say of whatever the hub's client raises in the block what it means."""
    try:
        yield
    except GatedRepoError:
        problem = "its owner gives it only to accounts that have asked for it (then run `hf auth login`)"
    except RepositoryNotFoundError as error:
        problem = "the hub knows no such model (a misspelling, or a private one: then run `hf auth login`)"
        problem = _REFUSED.get(_status(error), problem)
    except HFValidationError as error:
        problem = f"it is not a possible name ({error})"
    except HfHubHTTPError as error:
        problem = _REFUSED.get(_status(error), f"the hub answered with an error ({_first_line(error)})")
    except Exception as error:  # noqa: BLE001 - the hub's client raises its transport's exceptions, whichever that is
        problem = f"the hub cannot be reached ({type(error).__name__}: {_first_line(error)})"
    else:
        return
    raise UserError(f"{what}: {problem}.{advice}")


def _status(error: HfHubHTTPError) -> int:
    return int(getattr(error.response, "status_code", 0))


def plain_arguments(arguments: object, *, where: str) -> dict[str, Any]:
    """Arguments of an architecture that came from a file, if they are plain values.

    Raises:
        UserError: One could name a file, an address or a class.
    """
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: expected an object, found {arguments!r}")
    for key, value in arguments.items():
        sizes = isinstance(value, list) and all(type(part) is int for part in value)
        plain = isinstance(value, _SCALARS) and not (isinstance(value, str) and re.search(r"[./:\\]", value))
        if not (sizes or plain) or key in ("pretrained", "pretrained_cfg", "checkpoint_path", "features_only"):
            raise UserError(f"{where}.{key} is {value!r}; expected plain numbers, words or switches of an architecture")
    return dict(arguments)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cached(name: str) -> Path | None:
    """The newest snapshot in the hub's cache if it is complete; None otherwise."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not there, or not a possible name: for the hub to say
        return None
    return folder if (folder / "config.json").is_file() and weight_files(folder) else None


def _download(name: str) -> Path:
    info = HfApi().model_info(name, timeout=_TIMEOUT)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    safe = any(name.endswith(".safetensors") and "/" not in name for name in names)
    weights = ["*.safetensors"] if safe else ["*.safetensors", "*pytorch_model*.bin"]
    # Modules of sentence-transformers may keep their weights in .bin files next to a backbone in safetensors.
    modules = ["[0-9]_*/pytorch_model.bin"]
    allow = [*_TEXT_FILES, *weights, *modules]
    return Path(
        snapshot_download(
            name, revision=info.sha, allow_patterns=allow, ignore_patterns=_OTHER_FORMATS, etag_timeout=_TIMEOUT
        )
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
        UserError: No such file, too large, not JSON, or not an object.
    """
    value = json_value(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The files with a folder's weights, safetensors before torch's own format; empty if there are none or not all."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).is_file():
            return [folder / stem]
        index = folder / f"{stem}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            names = sorted(set(places.values())) if isinstance(places, dict) else []
            if any(not isinstance(name, str) or Path(name).name != name for name in names):
                raise UserError(f"{index}: names of weight files must be plain file names in the same folder")
            files = [folder / name for name in names]
            return files if all(file.is_file() for file in files) else []
    return []


def read_weights(folder: Path, *, keep: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
    """The tensors of a model's folder, as float32 where they are floating point.

    Args:
        folder: Holds `model.safetensors` or `pytorch_model.bin`, or the parts that an index file lists.
        keep: Which tensors are wanted, by name; the others are not read.

    Raises:
        UserError: There are no weights, or a file is damaged or holds more than tensors.
    """
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder}: no (or not all) weights: expected model.safetensors or pytorch_model.bin")
    weights: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            weights.update(_read_safetensors(file, keep))
        else:
            state = bare_weights(load_checkpoint(file))
            weights |= {key: value for key, value in state.items() if keep(key)}
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def _read_safetensors(path: Path, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    check_safetensors(path)
    with reading(path, "a safetensors file"), safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if keep(key)}  # noqa: SIM118 - not a mapping
