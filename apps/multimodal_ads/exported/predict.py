"""Tell ads from others with an exported classifier; needs numpy, onnxruntime, and Pillow or tokenizers, or both.

Where there is no tokenizer.json, texts are read as hashed n-grams, which needs scikit-learn in its place.

python predict.py picture.jpg ...                      a model of pictures
python predict.py picture.jpg "text in it" ...         of both: pairs, "" where there is no text
python predict.py "text" ...                           of texts
"""

import json
import math
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent


def pixels(path: str, how: dict[str, Any], side: int | None) -> dict[str, np.ndarray[Any, Any]]:
    """A picture as the model takes it: resized as a whole, scaled and normalised, float32 [1, 3, H, W]."""
    from PIL import Image

    size = how["size"]["width"], how["size"]["height"]
    try:
        file = Image.open(path)
        if side is not None:  # a large JPEG file is decoded at a part of its size
            file.draft(None, (side, side))
        opened = file.convert("RGB").resize(size, Image.Resampling(how["resample"]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        sys.exit(f"{path}: no such picture, or damaged")
    image = np.asarray(opened, np.float32)
    normal = (image * how["rescale_factor"] - how["image_mean"]) / how["image_std"]
    return {"pixel_values": normal.transpose(2, 0, 1)[None].astype(np.float32)}


def tokens(text: str, how: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """A text as the model takes it, whole or in chunks; `text_of` is -1 where there is none."""
    if "buckets" in how:
        return ngrams(text, how)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    tokenizer.enable_padding(**how["padding"])
    if how["limit"] is not None:
        tokenizer.enable_truncation(how["limit"], **how["truncation"])
    first = tokenizer.encode(how["prefix"] + (text or "."))
    chunks = [first, *first.overflowing][: how["chunks"]]
    ids, mask = (np.array([getattr(one, name) for one in chunks], np.int64) for name in ("ids", "attention_mask"))
    place = np.arange(len(chunks)) if text else np.array([-1])
    return {"input_ids": ids, "attention_mask": mask, "text_of": place[None] if how["chunks"] > 1 else place}


def facts(text: str) -> dict[str, np.ndarray[Any, Any]]:
    """How long a text is, and its shares of letters, digits and other signs, for the gate."""
    size, words = len(text) or 1, len(text.split())
    letters, digits, blanks = (sum(map(kind, text)) for kind in (str.isalpha, str.isdigit, str.isspace))
    shares = letters / size, digits / size, (len(text) - letters - digits - blanks) / size
    lengths = math.log10(1 + len(text)), math.log10(1 + words)
    return {"text_facts": np.array([[float(bool(text)), *lengths, *shares]], np.float32)}


def ngrams(text: str, how: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The same of n-grams: their buckets, and how often each occurs; half of the buckets are for words."""
    from sklearn.feature_extraction.text import HashingVectorizer

    half, found = how["buckets"] // 2, []
    for analyzer, lengths in (("word", how["words"]), ("char_wb", how["characters"])):
        plain = {"n_features": half, "alternate_sign": False, "norm": None}
        way = HashingVectorizer(analyzer=analyzer, ngram_range=tuple(lengths), **plain)
        found.append(way.transform([text[: how["most_characters"]]]))
    ids = np.concatenate([[0], found[0].indices, found[1].indices + half])[None].astype(np.int64)
    counts = np.concatenate([[0], found[0].data, found[1].data])[None].astype(np.int64)
    return {"input_ids": ids, "attention_mask": counts, "text_of": np.array([0 if text else -1])}


def unmasked(text: str, lookalikes: dict[str, str]) -> str:
    """A text without invisible characters and letters that only look like others."""
    text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    table = str.maketrans(lookalikes)
    return re.sub(r"\w*[A-Za-z]\w*", lambda word: word[0].translate(table), text)


def main(given: list[str]) -> None:
    """Print a line for each picture, text, or pair of both."""
    about = json.loads((HERE / "model.json").read_text(encoding="utf-8"))["about"]
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    pictures, texts, least = about["vision"], about["text"], (about["decision"] or {"threshold": 0.5})["threshold"]
    step = 2 if pictures and texts else 1
    if len(given) % step:
        sys.exit(f"{given[-1]}: has no text beside it; this model takes pairs: picture.jpg 'text in it', '' for none")
    for place in range(0, len(given), step):
        picture = pixels(given[place], pictures["processor"], about["decode_side"]) if pictures else {}
        words = given[place + step - 1]
        words = unicodedata.normalize("NFC", unmasked(words, about["lookalikes"]) if about["lookalikes"] else words)
        text = tokens(words.strip(), texts) if texts else {}
        text |= facts(words.strip()) if texts and texts["facts"] else {}
        chance = 1 / (1 + np.exp(-float(session.run(["logits"], {**picture, **text})[0][0])))
        print(given[place], "not_ad" if least is None or chance < least else "ad", f"{chance:.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
