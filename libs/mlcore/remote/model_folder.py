"""What a published model's folder may hold, checked before a library reads it.

Some settings make libraries fetch or run something else than the model in the folder: code of its own or of the hub,
kernels, an adapter's base model. Libraries ask for trust in some cases and not in others; such a folder is refused.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.base.reading import reading

__all__ = ["check_model_folder", "check_safetensors", "json_value"]

_SETTINGS_BYTES = 4 * 2**20
_LARGE_BYTES = 256 * 2**20  # vocabularies and lists of tensors, which are data and not settings
_HEADER_BYTES = 16 * 2**20  # of a safetensors file: names and shapes of some 100,000 tensors
_LARGE = ("tokenizer.json", "vocab.json", "added_tokens.json")
_INDEX = ".index.json"
_REFUSED = (
    "auto_map", "auto_mapping", "custom_pipelines", "custom_generate", "trust_remote_code", "peft_type",
    "base_model_name_or_path", "kernel_config", "use_kernels",
)  # fmt: skip
# Of these, every other value may be the name of a kernel on the hub.
_IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
_BUILT_IN = (None, "eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")
_ADAPTER = "adapter_config.json"


def check_model_folder(folder: Path, *, refused: Sequence[str] = ()) -> None:
    """Make sure that what libraries do with the folder is to read the model in it.

    Args:
        folder: A published model's; folders in it are its parts.
        refused: Further settings that may not be there.

    Raises:
        UserError: A file of settings asks for something else or cannot be read, a file is a link out of the folder, or
            a safetensors file has no header of a sensible size; the message names the file.
    """
    files = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file() or path.is_symlink()]
    for path in sorted(files):
        _check_place(path, folder)
        if path.name == _ADAPTER:
            raise UserError(f"{path}: refused, because an adapter's base model lies elsewhere; merge them")
        if path.suffix == ".safetensors":
            check_safetensors(path)
        elif path.suffix == ".json" and path.name not in _LARGE and not path.name.endswith(_INDEX):
            _check_settings(path, (*_REFUSED, *refused))


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file whose header is larger than those of real models.

    Raises:
        UserError: It is, or cannot be read.
    """
    with reading(path, "a safetensors file"), path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > min(_HEADER_BYTES, path.stat().st_size):
        raise UserError(
            f"{path}: damaged or not a safetensors file (a header of {size} bytes; at most {_HEADER_BYTES} are read)"
        )


def json_value(path: Path) -> Any:
    """What is in a JSON file of a model's folder.

    Raises:
        UserError: No such file, larger than 4 MiB (256 for vocabularies and lists of tensors), or not JSON.
    """
    most = _LARGE_BYTES if path.name in _LARGE or path.name.endswith(_INDEX) else _SETTINGS_BYTES
    with reading(path, "a JSON file of a published model"), path.open(encoding="utf-8") as file:
        text = file.read(most + 1)
        if len(text) > most:
            raise UserError(f"{path}: more than {most // 2**20} MiB; expected a file of settings")
        return json.loads(text)


def _check_place(path: Path, folder: Path) -> None:
    """Links stay in the folder, or lead to where the hub's cache keeps the files of its folders."""
    root = folder.resolve()
    place = path.resolve()
    cached = root.parent.name == "snapshots" and place.is_relative_to(root.parent.parent / "blobs")
    if not (cached or place.is_relative_to(root)):
        raise UserError(f"{path}: refused, because it is a link out of the folder; put the file itself there")


def _check_settings(path: Path, refused: Sequence[str]) -> None:
    """Look at every object in the file, at whatever depth."""
    for key, value in _items(json_value(path)):
        name = key.removeprefix("_").removesuffix("_internal")
        if (key in refused and value) or (name in _IMPLEMENTATIONS and value not in _BUILT_IN):
            raise UserError(
                f"{path}: refused, because its {key} asks for something else than the model in this folder; take it "
                "out, or take a model that needs no code of its own"
            )


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
