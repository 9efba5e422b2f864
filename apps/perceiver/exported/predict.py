"""Predict with an exported Perceiver; needs numpy and onnxruntime, and Pillow for pictures, and nothing else.

python predict.py series.npz          the array `inputs`, [N, M, C], and perhaps `times`, [N, M]
python predict.py picture.png ...
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
Array = np.ndarray[Any, Any]


def patches(path: str, about: dict[str, Any]) -> Array:
    """A picture as a sequence: patches row by row, their pixels in [0, 1], and where they are."""
    from PIL import Image

    size = about["width"], about["height"]
    image = np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    side, positions = about["patch_size"], np.array(about["positions"], dtype=np.float32)
    cut = image.reshape(size[1] // side, side, size[0] // side, side, 3).swapaxes(1, 2).reshape(len(positions), -1)
    return np.concatenate([cut / 255, positions], axis=1)


def sequences(file: str, about: dict[str, Any]) -> Array:
    """The array `inputs`; where the model knows time stamps, with the array `times` as a last channel."""
    arrays = np.load(file)
    found: Array = arrays["inputs"].astype(np.float32)
    if about["preprocessing"].get("timed"):
        times = arrays["times"] - arrays["times"][:, :1]
        found = np.concatenate([found, times[..., None].astype(np.float32)], axis=2)
    return found


def queries(series: Array, task: dict[str, Any]) -> dict[str, Array]:
    """The network's inputs where it is asked for positions: for those to come, or for all."""
    horizon = task["horizon"]
    if horizon and not task["covariates"]:
        series = np.pad(series, ((0, 0), (0, horizon), (0, 0)))
        if task.get("time_step"):
            series[:, -horizon:, -1] = series[:, -horizon - 1, -1:] + task["time_step"] * np.arange(1, horizon + 1)
    series = series[:, -(horizon + task["context"]) :] if task["context"] else series
    length = series.shape[1]
    asked = np.arange(length - horizon if horizon else 0, length)
    mask = np.broadcast_to(np.arange(length) < length - horizon, series.shape[:2])
    return {"input": series, "mask": mask, "query": np.broadcast_to(asked, (len(series), len(asked)))}


def answers(found: Array, task: dict[str, Any]) -> Array:
    """Numbers in the data's units, or probabilities of labels or classes."""
    if task["mean"]:
        found = found * np.array(task["std"]) + np.array(task["mean"])
    elif task["kind"] == "multilabel":
        found = 1 / (1 + np.exp(-found))
    else:
        found = probabilities(found)
    return found


def probabilities(logits: Array) -> Array:
    """Of the classes along the last axis."""
    chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = chances / chances.sum(axis=-1, keepdims=True)
    return shares


def main(files: list[str]) -> None:
    """Print a line for each series or picture: class and probability, or what the model's task answers as JSON."""
    about = json.loads((HERE / "model.json").read_text(encoding="utf-8"))["about"]
    if about["preprocessing"]["kind"] == "raw":
        sys.exit("this model reads tables of texts, images and series: quartet predict FOLDER TABLE")
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    task = about.get("task")
    for file in files:
        npz = file.endswith(".npz")
        found = sequences(file, about) if npz else patches(file, about["preprocessing"])[None]
        found = found.astype(np.float32)
        given = {"input": found, "mask": np.ones(found.shape[:2], dtype=bool)}
        if task and "query" in [one.name for one in session.get_inputs()]:
            given = queries(found, task)
        outputs = session.run(None, given)[0]
        for row in answers(outputs, task) if task else probabilities(outputs):
            if task:
                print(file, json.dumps(row.tolist()))
            else:
                print(file, about["class_names"][int(row.argmax())], f"{row.max():.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
