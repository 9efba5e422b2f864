"""What a sentence-transformers folder may hold, checked before the library reads it.

Such a folder names Python classes in its files. Only the library's own four that text models consist of are accepted,
in any of the spellings of its versions, and weights only as safetensors or as plain tensors; no file of the folder is
ever imported.
"""

from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.remote.hub import read_json, weight_files
from mlcore.remote.model_folder import check_model_folder, json_value
from mlcore.training.checkpoint import load_checkpoint

__all__ = ["check_folder", "read_modules"]

_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_PACKAGES = (
    "sentence_transformers.models",
    "sentence_transformers.base.modules",
    "sentence_transformers.sentence_transformer.modules",
    *(
        f"sentence_transformers.{place}.{name.lower()}"
        for place in ("models", "base.modules", "sentence_transformer.modules")
        for name in _MODULES
    ),
)
_TYPES = {f"{package}.{name}": name for package in _PACKAGES for name in _MODULES}
_ACTIVATIONS = {
    f"torch.nn.{path}"
    for name, file in (("Tanh", "activation"), ("ReLU", "activation"), ("GELU", "activation"), ("Identity", "linear"))
    for path in (name, f"modules.{file}.{name}")
}
# By these a file of sentence-transformers hands arguments to transformers, such as other weights, or a pickle's.
_REFUSED = (
    "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs",
    "tokenizer_name_or_path", "quantization_config",
)  # fmt: skip


def check_folder(folder: Path) -> int:
    """Make sure that loading the folder runs no code of its own.

    Returns:
        Features of a text.

    Raises:
        UserError: It is no sentence-transformers model, or one that needs code of its own; the message names the file.
    """
    modules = read_modules(folder)
    for place in sorted({folder, *(place for _, place in modules)}):
        check_model_folder(place, refused=_REFUSED)
    width = 0
    for kind, place in modules:
        if kind == "Transformer":
            width = _check_transformer(place)
        elif kind == "Pooling":
            width = _pooled_width(read_json(place / "config.json"), width)
        elif kind == "Dense":
            width = _check_dense(place)
    if modules[0][0] != "Transformer" or "Pooling" not in dict(modules):
        raise UserError(f"{folder / 'modules.json'}: expected a Transformer, then a Pooling")
    return width


def read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module of a sentence-transformers model.

    Raises:
        UserError: There is no list of them, or it names others than the library's own.
    """
    path = folder / "modules.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; text_encoder.model must be a sentence-transformers model")
    content = json_value(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of modules, found {type(content).__name__}")
    modules = []
    for entry in content:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise UserError(f"{path}: each entry must be an object with name, path and type")
        kind = _TYPES.get(str(entry.get("type")))
        if kind is None:
            raise UserError(
                f"{path}: refused, because it names the class {entry.get('type')!r}; only sentence-transformers' own "
                f"{', '.join(_MODULES)} are loaded"
            )
        place = Path(entry["path"])
        if place.is_absolute() or ".." in place.parts:
            raise UserError(f"{path}: refused, because the path {entry['path']!r} leads out of the folder")
        with reading(path, "a list of modules in folders beside it"):
            (folder / place).exists()  # not every text can name a folder: it is too long, or has a NUL in it
        modules.append((kind, folder / place))
    if not modules:
        raise UserError(f"{path}: names no module")
    return modules


def _check_transformer(folder: Path) -> int:
    _check_weights(folder)
    settings = read_json(folder / "config.json")
    width = settings.get("hidden_size", settings.get("dim"))
    if not isinstance(width, int):
        raise UserError(f"{folder / 'config.json'}: hidden_size is {width!r}; expected a whole number")
    return width


def _check_weights(folder: Path) -> None:
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder}: no (or not all) weights: expected model.safetensors or pytorch_model.bin")
    for file in files:
        if file.suffix != ".safetensors":
            load_checkpoint(file)  # refuses whatever is more than tensors


def _pooled_width(settings: dict[str, Any], width: int) -> int:
    """Several ways of pooling stand side by side in the output."""
    old_ways = sum(bool(value) for key, value in settings.items() if key.startswith("pooling_mode_"))
    mode = settings.get("pooling_mode", "")
    ways = len(mode) if isinstance(mode, list) else max(1, old_ways)
    return ways * width


def _check_dense(folder: Path) -> int:
    path = folder / "config.json"
    settings = read_json(path)
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{path}: refused, because activation_function is {activation!r}; only Tanh, ReLU, GELU and Identity of "
            "torch.nn are loaded"
        )
    _check_weights(folder)
    if not isinstance(settings.get("out_features"), int):
        raise UserError(f"{path}: out_features is {settings.get('out_features')!r}; expected a whole number")
    return int(settings["out_features"])
