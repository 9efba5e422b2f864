"""Frozen text encoders: any sentence-transformers model from the hub, a folder, or an installed package.

The folder is checked before anything is loaded from it (`text.safety`), and the weights are loaded at the first text:
a run that finds all its texts in the feature store never waits for them.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.remote.hub import find_model
from quartet.apps.multimodal_ads.config import TextEncoderConfig
from quartet.apps.multimodal_ads.text.identity import describe_encoder, files_digest
from quartet.apps.multimodal_ads.text.library import LIMITLESS, load_model, most_tokens
from quartet.apps.multimodal_ads.text.network import TextNetwork, outline_text, pool_chunks
from quartet.apps.multimodal_ads.text.ngrams import NGRAMS, NgramEncoder
from quartet.apps.multimodal_ads.text.reading import TextReader, count_tokens, overlap, start
from quartet.apps.multimodal_ads.text.safety import check_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["AnyTextEncoder", "TextEncoder", "load_text"]

_SETTING = "text_encoder.model"
_PROCESSING = "2"  # raise when `encode` changes what it makes of a text; 1 digested all files of the folder


class TextEncoder:
    """A frozen sentence encoder.

    Args:
        folder: A folder that `check_folder` has passed.
        width: D, features of a text.
        prefix: Put before every text.
        max_length: Texts are cut to this many tokens; None: the model's own limit.
        chunks: How many pieces of that length are read of a text that is longer.
    """

    def __init__(
        self, folder: Path, *, width: int, prefix: str = "", max_length: int | None = None, chunks: int = 1
    ) -> None:
        self.width = width
        self._folder = folder
        self._prefix = prefix
        self._max_length = max_length
        self._chunks = chunks
        self._device = torch.device("cpu")
        self._model: SentenceTransformer | None = None
        self._bare: SentenceTransformer | None = None  # without weights, until there are some
        self._fingerprint: str | None = None
        self._tokens: TextReader | None = None

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Compute on `device` from now on."""
        self._device = torch.device(device)
        if self._model is not None:
            self._model.to(self._device)
        return self

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """Features of texts; give many at once, those of like length are computed together.

        Those of a text in chunks are the mean of these, weighted by their tokens.

        Args:
            texts: N texts of any length.
            batch_size: Texts that go through the model together.

        Returns:
            [N, D], float32, on the CPU; of unit length if the model says so and a text is one chunk.

        Raises:
            UserError: The weights are not those of the model, or it cannot read `max_length` tokens.
        """
        if not texts:
            return torch.zeros(0, self.width)
        model = self._loaded()
        different = list(dict.fromkeys(texts))  # many pictures have the same text, or none
        features = model.encode(
            [self._prefix + start(text, self.limit) for text in different],
            prompt="",  # never one that the folder's files ask for: prefixes are in the configuration
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        features = self._with_further_chunks(different, features.float().cpu(), batch_size=batch_size)
        place = {text: number for number, text in enumerate(different)}
        return features[[place[text] for text in texts]]  # a copy: the library's are inference tensors

    @torch.inference_mode()
    def _with_further_chunks(self, texts: Sequence[str], features: Tensor, *, batch_size: int) -> Tensor:
        """Features [N, D] of whole texts of those of their first chunks."""
        if self._chunks == 1:
            return features
        tokens, mask, chunks = self.reader()(texts)
        model, found = self._loaded(), [features]
        network = TextNetwork(model[0].model, list(model)[1:])
        for place in range(len(texts), len(tokens), batch_size):
            some = slice(place, place + batch_size)
            found.append(network(tokens[some].to(self._device), mask[some].to(self._device)).float().cpu())
        return pool_chunks(torch.cat(found), mask, chunks)

    def network(self) -> TextNetwork:
        """What `encode` computes with, for tokens, to be kept and changed by the caller; raises as `encode`."""
        model = self._loaded()
        self._model = None
        return TextNetwork(model[0].model, list(model)[1:])

    def reader(self) -> TextReader:
        """Makes what `network` takes of texts; raises as `outline`."""
        if self._tokens is None:
            self._tokens = TextReader(*self.outline())
        return self._tokens

    def outline(self) -> tuple[dict[str, Any], str]:
        """Plain values from which `TextReader` and `make_text_network` are made, and the tokenizer's JSON.

        Raises:
            UserError: As `encode`, or the encoder is of a kind that cannot be described so.
        """
        model = self._reader()
        tokenizer: Any = model[0].tokenizer
        if not tokenizer.is_fast:
            raise UserError(f"{self._folder}: its tokenizer is none of the library `tokenizers`")
        side, cut = tokenizer.padding_side, tokenizer.truncation_side
        padding = {"pad_id": tokenizer.pad_token_id, "pad_token": tokenizer.pad_token, "direction": side}
        reading = {"prefix": self._prefix, "limit": self.limit, "most": self.most, "padding": padding}
        truncation: dict[str, Any] = {"direction": cut}
        chunks = 1 if self.limit is None else self._chunks
        if self.limit is not None and chunks > 1:
            truncation["stride"] = overlap(self.limit)
        values = {**reading, "truncation": truncation, "chunks": chunks, **outline_text(model)}
        return values, tokenizer.backend_tokenizer.to_str()

    def _loaded(self) -> "SentenceTransformer":
        """The model with its weights."""
        if self._model is None:
            model = load_model(self._folder, max_length=self._max_length)
            with reading(self._folder, "a sentence encoder"):
                model.encode(["a"], prompt="", show_progress_bar=False)  # its parts may not fit together
            self._model, self._bare = model.to(self._device), None
        return self._model

    def count_tokens(self, texts: Sequence[str]) -> Tensor:
        """Tokens of each text with its prefix, int64 [N], as if it were not cut; 0 for an empty text.

        Of texts beyond what can be read many times over it is estimated, from their starts.

        Raises:
            UserError: As `encode`.
        """
        tokenizer: Any = self._reader()[0].tokenizer

        def count(starts: list[str]) -> list[int]:
            tokens = tokenizer(starts, truncation=False, padding=False, verbose=False)["input_ids"]
            return [len(found) for found in tokens]

        return count_tokens(texts, self._prefix, self.whole, count)

    @property
    def limit(self) -> int | None:
        """Tokens that are read of a text; None: all.

        Raises:
            UserError: As `encode`.
        """
        limit = self._reader().max_seq_length
        return None if limit is None or limit > LIMITLESS else int(limit)

    @property
    def whole(self) -> int | None:
        """Tokens of a text that are read in all its chunks; None: all.

        Raises:
            UserError: As `encode`.
        """
        return self.limit if self._chunks == 1 else self.reader().whole

    @property
    def most(self) -> int | None:
        """The largest `limit` that can be asked for; None: any.

        Raises:
            UserError: As `encode`.
        """
        return most_tokens(self._reader()[0].model)

    def _reader(self) -> "SentenceTransformer":
        """The model, perhaps without weights, for what comes before the network."""
        if self._model is not None:
            return self._model
        if self._bare is None:
            self._bare = load_model(self._folder, max_length=self._max_length, weights=False)
        return self._bare

    def fingerprint(self) -> str:
        """Text that differs whenever something differs that changes features: a line for each such thing.

        Raises:
            UserError: As `encode`.
        """
        if self._fingerprint is None:  # the weights are gigabytes
            parts = describe_encoder(self._reader(), self._folder)
            values = {**parts, "prefix": repr(self._prefix), "max_length": self.limit}
            values |= {"chunks": self._chunks} if self._chunks > 1 else {}
            self._fingerprint = "\n".join([f"text {_PROCESSING}", *(f"{key}={value}" for key, value in values.items())])
        return self._fingerprint

    def former_fingerprint(self) -> str | None:
        """What `fingerprint` was of this encoder when it digested all files of the folder.

        None: it was another one then, because a `max_length` above the model's own was not followed.

        Raises:
            UserError: As `encode`.
        """
        own = load_model(self._folder, max_length=None, weights=False).max_seq_length
        if self._max_length is not None and own is not None and self._max_length > own:
            return None
        return f"text 1 {files_digest(self._folder)} prefix={self._prefix!r} max_length={self._max_length}"


AnyTextEncoder = TextEncoder | NgramEncoder


def load_text(config: TextEncoderConfig) -> AnyTextEncoder:
    """Find the model of `text_encoder.model` and check its folder; "ngrams" needs none.

    A name is looked for as a folder, then as an installed Python package that carries the files in a folder called
    `model` (nothing of it is imported), then on the hub.

    Raises:
        UserError: `config.model` is null, nothing of that name can be had, the folder is not a sentence-transformers
            model that can be loaded without running its code, or it cannot read `config.max_length` tokens.
    """
    if config.model is None:
        raise UserError(f"{_SETTING} is null: there is no text encoder to load")
    if config.model == NGRAMS:
        return NgramEncoder(config.buckets, config.width)
    folder = _packaged(config.model) or find_model(
        config.model,
        setting=_SETTING,
        ways_out="Or take text_encoder=minilm, which comes with the requirements, text_encoder=ngrams, which needs no "
        "weights, or text_encoder=none.",
    )
    width, length = check_folder(folder), config.max_length
    encoder = TextEncoder(folder, width=width, prefix=config.prefix, max_length=length, chunks=config.chunks)
    if config.max_length is not None:
        _ = encoder.limit  # refused here, not hours later at the first text
    return encoder


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
