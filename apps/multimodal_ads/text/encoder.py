"""Frozen text encoders: any sentence-transformers model from the hub, a folder, or an installed package.

The folder is checked before anything is loaded from it (`text.safety`), and the model itself is loaded at the first
text: a run that finds all its texts in the feature store never waits for it.
"""

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.remote.hub import find_model, read_weights
from quartet.apps.multimodal_ads.config import TextEncoderConfig
from quartet.apps.multimodal_ads.loading import quiet_loading
from quartet.apps.multimodal_ads.text.safety import check_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TextEncoder", "load_text"]

_SETTING = "text_encoder.model"
_PROCESSING = "1"  # raise when `encode` changes what it makes of a text
_MOST_TOKENS = 8192  # no sentence encoder in use reads more
_IGNORED = {".md", ".py", ".pyc", ".png", ".jpg", ".onnx", ".h5", ".msgpack", ".ot"}


class TextEncoder:
    """A frozen sentence encoder.

    Args:
        folder: A folder that `check_folder` has passed.
        width: D, features of a text.
        prefix: Put before every text.
        max_length: Texts are cut to this many tokens; None: the model's own limit.
    """

    def __init__(self, folder: Path, *, width: int, prefix: str = "", max_length: int | None = None) -> None:
        self.width = width
        self._folder = folder
        self._prefix = prefix
        self._max_length = max_length
        self._device = torch.device("cpu")
        self._model: SentenceTransformer | None = None
        self._fingerprint: str | None = None

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Compute on `device` from now on."""
        self._device = torch.device(device)
        if self._model is not None:
            self._model.to(self._device)
        return self

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """Features of texts; give many at once, those of like length are computed together.

        Args:
            texts: N texts of any length.
            batch_size: Texts that go through the model together.

        Returns:
            [N, D], float32, on the CPU; of unit length if the model says so.

        Raises:
            UserError: The weights are not those of the model.
        """
        if not texts:
            return torch.zeros(0, self.width)
        if self._model is None:
            self._model = _load_model(self._folder, self._max_length).to(self._device)
        features = self._model.encode(
            [self._prefix + self._start(text) for text in texts],
            prompt="",  # never one that the folder's files ask for: prefixes are in the configuration
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return features.float().cpu().clone()  # a clone, because the library's are inference tensors

    def _start(self, text: str) -> str:
        """What the model can read of a text; the tokenizer would take seconds for the rest of a megabyte."""
        limit = None if self._model is None else self._model.max_seq_length
        most = 64 * (limit or _MOST_TOKENS)  # characters, far more than there are in so many tokens
        return text if len(text) <= most else " ".join(text.split())[:most]

    def fingerprint(self) -> str:
        """Text that differs whenever a file of the model or a setting differs that changes features."""
        if self._fingerprint is None:  # the files are gigabytes
            settings = f"prefix={self._prefix!r} max_length={self._max_length}"
            self._fingerprint = f"text {_PROCESSING} {_digest(self._folder)} {settings}"
        return self._fingerprint


def _digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in _IGNORED and not path.name.startswith("."):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_text(config: TextEncoderConfig) -> TextEncoder:
    """Find the model of `text_encoder.model` and check its folder.

    A name is looked for as a folder, then as an installed Python package that carries the files in a folder called
    `model` (nothing of it is imported), then on the hub.

    Raises:
        UserError: `config.model` is null, nothing of that name can be had, or the folder is not a sentence-transformers
            model that can be loaded without running its code.
    """
    if config.model is None:
        raise UserError(f"{_SETTING} is null: there is no text encoder to load")
    folder = _packaged(config.model) or find_model(
        config.model,
        setting=_SETTING,
        ways_out="Or take the small text_encoder=minilm, which comes with the requirements, or text_encoder=none.",
    )
    return TextEncoder(folder, width=check_folder(folder), prefix=config.prefix, max_length=config.max_length)


def _packaged(name: str) -> Path | None:
    """The folder `model` of the installed package `name`, if there is one."""
    if not name.isidentifier() or Path(name).is_dir():
        return None
    try:
        spec = importlib.util.find_spec(name)  # for a name without dots this finds and does not import
    except ValueError:  # of a module that was made by hand, such as __main__
        return None
    places = () if spec is None else spec.submodule_search_locations or ()
    return next((folder for folder in (Path(place, "model") for place in places) if folder.is_dir()), None)


def _load_model(folder: Path, max_length: int | None) -> "SentenceTransformer":
    # Late, because it takes seconds and is needed for new texts only.
    from sentence_transformers import SentenceTransformer

    try:
        with quiet_loading():
            model = SentenceTransformer(
                str(folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"attn_implementation": "sdpa", "dtype": torch.float32},
            )
            _be_strict(model[0].model, folder)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder}: sentence-transformers cannot load it: {type(error).__name__}: {error}") from error
    if max_length is not None:
        model.max_seq_length = min(max_length, model.max_seq_length or max_length)
    return model.eval().requires_grad_(requires_grad=False)


def _be_strict(model: Any, folder: Path) -> None:
    """Refuse weights that lack a part of the model, which the library would draw at random with a warning."""
    prefix = f"{model.base_model_prefix}."
    found = {name.removeprefix(prefix) for name in _weight_names(folder)}
    missing = _needed({name for name, _ in model.named_parameters()} - found)
    if missing:
        # Older files have other names, which only the library knows; ask it, at the price of a second model.
        report = type(model).from_pretrained(
            None, config=model.config, state_dict=read_weights(folder), output_loading_info=True
        )[1]
        missing = _needed(report["missing_keys"])
    if missing:
        names = f"{'; '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        raise UserError(f"{folder}: the weights lack {len(missing)} tensors of {type(model).__name__}: {names}")


def _weight_names(folder: Path) -> list[str]:
    names: list[str] = []

    def note(name: str) -> bool:
        names.append(name)
        return False  # nothing needs to be read

    read_weights(folder, keep=note)
    return names


def _needed(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("pooler."))  # sentence-transformers pools by itself
