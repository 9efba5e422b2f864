"""What a text encoder is: a fingerprint of what is loaded, whatever else lies in its folder.

Two folders have the same one if the same numbers come out: by the weights of the network in whatever file format, by
what the tokenizer makes of texts, and by the settings that the library's code looks at. Versions of libraries do not
count, but what they make of texts does.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quartet.apps.multimodal_ads.features import tensors_digest
from quartet.apps.multimodal_ads.text.library import module_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["describe_encoder", "files_digest"]

_SCRIPTS = (
    "Summer SALE: 50 % off, only $9.99! www.example.com/a_b?c=1#d (until 31.12.) «naïve café» ŁÓDŹ straße İstanbul",
    "광고 50% 할인, 오늘만! \u1100\u1161\u11a8 ㅋㅋ 값싼 물건은 여기에서",
    "本日限定セール、半額です。ｶﾞｷﾞ 今天打折，買一送一！ 简体字",
    "Распродажа: скидка до 70 % — ещё дешевле. Προσφορά! תוֹצֶרֶת مُنتَجٌ १२३ ส่วนลด",
    "\ufb01ne \u00bd \u2460 \U0001f600\u200d\U0001f525 \t tabs\r\nand\nlines\u00a0\u3000spaces  e\u0301\u0323",
    "''\"“” ... --- @#&*~^|\\ [CLS] <s> </s> a\0b",
    "",
)
_FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}
_SAMPLED = 2048  # entries of the vocabulary that are read as text
_TOGETHER = 16  # of them in one text
# What decides nothing about the outputs of a frozen network, or is decided by the loading.
_IDLE = (
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "tokenizer_class", "id2label"),
    *("label2id", "problem_type", "use_cache", "return_dict", "output_", "initializer_", "gradient_checkpointing"),
)
_IGNORED = {".md", ".py", ".pyc", ".png", ".jpg", ".onnx", ".h5", ".msgpack", ".ot"}


def describe_encoder(model: "SentenceTransformer", folder: Path) -> dict[str, str]:
    """Digests of a model's weights, of its tokenizer, and of what else decides about its features.

    Args:
        model: The folder's, with or without weights.
        folder: Of which `check_folder` knows that it is safe.

    Raises:
        UserError: The weights cannot be read, or lack a part of the model.
    """
    return {
        "weights": tensors_digest(module_weights(model, folder)),
        "tokenizer": _digest(_reading(model[0].tokenizer)),
        "network": _digest(_network(model)),
    }


def _reading(tokenizer: Any) -> list[Any]:
    """The vocabulary, and what the tokenizer makes of texts in many scripts and of a sample of the vocabulary."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    words = [word for word, _ in entries[:: max(1, len(entries) // _SAMPLED)]]
    texts = [*_SCRIPTS, *(" ".join(words[start : start + _TOGETHER]) for start in range(0, len(words), _TOGETHER))]
    tokens = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    return [entries, tokens, tokenizer.truncation_side]


def _network(model: "SentenceTransformer") -> list[Any]:
    """Kinds of the modules, in order, and the settings of each that are not the library's own."""
    found: list[Any] = []
    modules: list[Any] = list(model)
    for module in modules:
        values: dict[str, Any] = {}
        kind = type(module).__name__
        if kind == "Transformer":
            values = {"kind": type(module.model).__name__, "config": _settings(module.model.config)}
            method = module.modality_config.get("text")
            values |= {} if method == _FORWARD else {"text": method}
            values |= {"processing": module.processing_kwargs} if module.processing_kwargs else {}
        elif kind == "Pooling":
            values = {"modes": module.pooling_mode, "prompt": module.include_prompt}
        elif kind == "Dense":
            values = {"activation": type(module.activation_function).__name__, "residual": module.use_residual}
        usual = "token_embeddings" if kind == "Transformer" else "sentence_embedding"
        for end in ("module_input_name", "module_output_name"):
            name = getattr(module, end, usual)
            values |= {} if name == usual else {end: name}
        found.append([kind, values])
    return found


def _settings(config: Any) -> dict[str, Any]:
    """What a network's configuration says that its class would not say by itself."""
    own = config.to_dict()
    try:
        usual = type(config)().to_dict()
    except (TypeError, ValueError, AttributeError):  # some cannot be made without arguments
        usual = dict.fromkeys(own)
    return {
        name: own[name]
        for name in sorted(own.keys() & usual.keys())
        if own[name] != usual[name] and not name.startswith(_IDLE) and "dropout" not in name
    }


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def files_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's files, by which checkpoints used to know their encoder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in _IGNORED and not path.name.startswith("."):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
