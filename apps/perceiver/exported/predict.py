"""Predict with an exported Perceiver; needs numpy and onnxruntime, and Pillow for pictures, and nothing else.

python predict.py series.npz          `inputs` [N, M, C], or [total, C] with `lengths` [N]; perhaps `mask`, `times`
python predict.py picture.png ...

Other files, and gaps in series, are for `quartet predict`, which takes this folder, too.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
ELSEWHERE = f"quartet predict {HERE} FILE"
Array = np.ndarray[Any, Any]


def patches(file: str, about: dict[str, Any]) -> Array:
    """A picture as a sequence: patches row by row, their pixels in [0, 1], and where they are."""
    from PIL import Image

    size = about["width"], about["height"]
    try:
        opened = Image.open(file).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        sys.exit(f"{file}: not a picture, which this model reads, or damaged")
    image = np.asarray(opened, dtype=np.float32)
    side, positions = about["patch_size"], np.array(about["positions"], dtype=np.float32)
    cut = image.reshape(size[1] // side, side, size[0] // side, side, 3).swapaxes(1, 2).reshape(len(positions), -1)
    return np.concatenate([cut / 255, positions], axis=1)


def arrays(file: str, timed: bool) -> dict[str, Array]:
    """The arrays of a file that matter."""
    if not file.endswith(".npz"):
        sys.exit(f"{file}: this reader takes .npz files; for others: {ELSEWHERE}")
    try:
        with np.load(file) as opened:
            known = ("inputs", "lengths", "mask", *(["times"] if timed else []))
            found = {name: opened[name] for name in known if name in opened}
    except (AttributeError, BadZipFile, EOFError, OSError, TypeError, ValueError):
        sys.exit(f"{file}: damaged or not an .npz file of numbers")
    inputs, lengths = found.get("inputs", np.empty(0)), found.get("lengths")
    if inputs.ndim != (3 if lengths is None else 2) or (lengths is not None and lengths.sum() != len(inputs)):
        sys.exit(f"{file}: expected the array inputs [N, M, C], or [total, C] with lengths [N] that add up to total")
    if timed and "times" not in found:
        sys.exit(f"{file}: no array times; this model reads time stamps, in the shape of inputs without its last axis")
    for name in ("mask", "times"):
        if name in found and found[name].shape != inputs.shape[:-1]:
            sys.exit(f"{file}: {name} is {list(found[name].shape)}; expected {list(inputs.shape[:-1])}")
    return found


def sequences(file: str, about: dict[str, Any]) -> Iterator[tuple[str, Array, Array]]:
    """Name, series [M, C] and mask [M] of each row; time stamps are the last channel, from 0."""
    found = arrays(file, bool(about["preprocessing"].get("timed")))
    parts = {
        name: np.split(values, np.cumsum(found["lengths"])[:-1]) if "lengths" in found else list(values)
        for name, values in found.items()
        if name != "lengths"
    }
    channels = about["model"]["input_dim"] - ("times" in found)
    for row, series in enumerate(parts["inputs"]):
        mask = parts["mask"][row] == 1 if "mask" in parts else np.ones(len(series), dtype=bool)
        real = np.flatnonzero(mask & ~np.isnan(series).all(axis=1))  # what follows the last one fills up
        length = int(real[-1]) + 1 if len(real) else 0
        series, mask = series[:length].astype(np.float32), mask[:length]
        if not length or series.shape[1] != channels:
            sys.exit(f"{file}, row {row}: {list(series.shape)}; expected [positions, {channels}], one at least")
        if "times" in parts:
            times = parts["times"][row][:length].astype(np.float64)
            if not (np.diff(times) > 0).all():
                sys.exit(f"{file}, row {row}: its times do not rise")
            series = np.column_stack([series, (times - times[0]).astype(np.float32)])
        yield f"{file}, row {row}", series, mask


def fitting(where: str, series: Array, mask: Array, about: dict[str, Any]) -> tuple[Array, Array, int, float]:
    """A series that the model can take, cut where its training cut; most positions (0: any) and longest duration."""
    options, data = about["model"]["options"], about["data"]
    known, lasting, most = options["max_seq_len"] * options.get("patch", 1), np.inf, data["max_seq_len"] or 0
    if options["position"] in ("added", "fourier", "learned"):
        most = most or (0 if "time_step" in options else known)
        lasting = (known - 1) * options["time_step"] * (1 + 1e-6) if "time_step" in options else np.inf
    task = about.get("task") or {}
    if task.get("context"):
        back = task["context"] + (task["horizon"] if task["covariates"] else 0)
        series, mask = series[-back:], mask[-back:]
    if most and data["on_too_long"] == "truncate":
        series, mask = series[:most], mask[:most]
    if most and len(series) > most:
        sys.exit(f"{where}: {len(series)} positions; the model takes {most}, shorten it")
    if series[-1, -1] - series[0, -1] > lasting:
        sys.exit(f"{where}: lasts longer than the {lasting:.6g} that the model takes, shorten it")
    return series, mask, most, lasting


def queries(where: str, series: Array, mask: Array, about: dict[str, Any]) -> dict[str, Array]:
    """The network's inputs for a series; where it is asked for positions, those to come, or all."""
    series, mask, most, lasting = fitting(where, series, mask, about)
    task = about.get("task") or {"horizon": 0}
    horizon, seen = task["horizon"], len(series)
    if horizon and not task["covariates"]:
        series, mask = np.pad(series, ((0, horizon), (0, 0))), np.pad(mask, (0, horizon))
        if task.get("time_step"):
            series[seen:, -1] = series[seen - 1, -1] + task["time_step"] * np.arange(1, horizon + 1)
    length = len(series)
    if length <= horizon:
        sys.exit(f"{where}: {length} positions; expected those seen and {horizon} more, whose covariates are known")
    if horizon:  # the last ones that there is room for; one is seen
        start = max(0, length - (most or length), length - horizon - (task["context"] or length))
        if task.get("time_step"):
            start = max(start, int((series[-1, -1] - series[:, -1] <= lasting).argmax()))
        start = min(start, length - horizon - 1)
        series, mask = series[start:], mask[start:]
        length = len(series)
        mask = mask & (np.arange(length) < length - horizon)
    if not np.isfinite(series[mask]).all() or not mask.any():
        sys.exit(
            f"{where}: has gaps, or nothing is to be seen; what to do with gaps: {ELSEWHERE} --set on_missing=mask"
        )
    asked = np.arange(length - horizon if horizon else 0, length)
    return {"input": series[None], "mask": mask[None], "query": asked[None]}


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
    """Print a line for each series or picture: likeliest class and probability, or what the task answers as JSON."""
    about = json.loads((HERE / "model.json").read_text(encoding="utf-8"))["about"]
    kind, task = about["preprocessing"]["kind"], about.get("task")
    if kind == "raw":
        sys.exit(f"this model reads tables of texts, images and series: quartet predict {HERE} TABLE")
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    for file in files:
        if not Path(file).is_file():
            sys.exit(f"{file}: no such file; this reader takes {'pictures' if kind == 'image' else '.npz files'}")
        if kind == "image":
            picture = patches(file, about["preprocessing"]).astype(np.float32)[None]
            inputs = iter([{"input": picture, "mask": np.ones(picture.shape[:2], dtype=bool)}])
        else:
            inputs = (queries(*row, about) for row in sequences(file, about))
        for given in inputs:
            outputs = session.run(None, {name: given[name] for name in names})[0]
            if task:
                print(file, json.dumps(answers(outputs, task)[0].tolist()))
            else:
                row = probabilities(outputs)[0]
                print(file, about["class_names"][int(row.argmax())], f"{row.max():.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
