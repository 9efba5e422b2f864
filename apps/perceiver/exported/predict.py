"""Classify with an exported Perceiver; needs numpy and onnxruntime, and Pillow for pictures, and nothing else.

python predict.py series.npz          the array `inputs`, [N, M, C]
python predict.py picture.png ...
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent


def patches(path: str, about: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A picture as a sequence: patches row by row, their pixels in [0, 1], and where they are."""
    from PIL import Image

    size = about["width"], about["height"]
    image = np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    side, positions = about["patch_size"], np.array(about["positions"], dtype=np.float32)
    cut = image.reshape(size[1] // side, side, size[0] // side, side, 3).swapaxes(1, 2).reshape(len(positions), -1)
    return np.concatenate([cut / 255, positions], axis=1)


def main(files: list[str]) -> None:
    """Print a line for each series or picture."""
    about = json.loads((HERE / "model.json").read_text(encoding="utf-8"))["about"]
    if about["preprocessing"]["kind"] == "raw":
        sys.exit("this model reads tables of texts, images and series: quartet predict FOLDER TABLE")
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    for file in files:
        npz = file.endswith(".npz")
        found = np.load(file)["inputs"] if npz else patches(file, about["preprocessing"])[None]
        given = {"input": found.astype(np.float32), "mask": np.ones(found.shape[:2], dtype=bool)}
        logits = session.run(["logits"], given)[0]
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        for row in chances / chances.sum(axis=1, keepdims=True):
            print(file, about["class_names"][int(row.argmax())], f"{row.max():.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
