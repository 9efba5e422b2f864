"""Weights come in from files of any origin, strictly, and nothing in a file is executed."""

import argparse
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mlcore.training.checkpoint import CheckpointError
from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.sam import SamMed3D
from quartet.apps.sam_med3d_ich.model.weights import encoder_state, load_weights, read_weights, resize_tables

State = dict[str, Tensor]
MakeModel = Callable[..., IchModel]


@pytest.fixture
def weights(tiny_model: MakeModel) -> State:
    return {key: value.clone() for key, value in tiny_model(seed=3).sam.state_dict().items()}


def saved(folder: Path, content: object) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("layout", ["released", "plain", "distributed", "legacy file"])
def test_each_layout_loads_strictly(tmp_path: Path, weights: State, tiny_shape: EncoderShape, layout: str) -> None:
    path = tmp_path / "weights.pth"
    if layout == "released":
        torch.save({"model_state_dict": weights, "epoch": 3}, path)
    elif layout == "plain":
        torch.save(weights, path)
    elif layout == "distributed":
        torch.save({"model_state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    else:
        torch.save({"model_state_dict": weights}, path, _use_new_zipfile_serialization=False)
    model = SamMed3D(tiny_shape)
    assert load_weights(model, read_weights(path), source=path) == []
    assert same(model.state_dict(), weights)


WRAPPED: dict[str, Callable[[State], object]] = {
    "state_dict": lambda w: {"state_dict": w, "epoch": 7},
    "model": lambda w: {"model": w, "best_dice": np.float64(0.8)},
    "nested": lambda w: {"state_dict": {"model": {"model_state_dict": w}}, "epoch": np.int64(3)},
    "numbers of numpy beside the weights": lambda w: {**w, "lr": np.float32(1e-4), "step": np.int32(5), "on": np.True_},
    "compiled": lambda w: {f"_orig_mod.{key}": value for key, value in w.items()},
    "compiled and distributed": lambda w: {"state_dict": {f"module._orig_mod.{k}": v for k, v in w.items()}},
    "distributed and compiled": lambda w: {"model": {f"_orig_mod.module.{k}": v for k, v in w.items()}},
    "compiled in parts": lambda w: {k.replace("image_encoder.", "image_encoder._orig_mod."): v for k, v in w.items()},
    "of a larger model": lambda w: {"state_dict": {f"model.sam_model.{key}": value for key, value in w.items()}},
    "of this app": lambda w: {f"module.sam.{key}": value for key, value in w.items()},
}


@pytest.mark.parametrize("layout", WRAPPED)
def test_weights_are_found_in_what_people_wrap_them_in(
    tmp_path: Path, weights: State, tiny_shape: EncoderShape, layout: str
) -> None:
    path = saved(tmp_path, WRAPPED[layout](weights))
    model = SamMed3D(tiny_shape)
    assert load_weights(model, read_weights(path), source=path) == []
    assert same(model.state_dict(), weights)


@pytest.mark.parametrize("partial", [False, True])
def test_an_unknown_prefix_is_named(tmp_path: Path, weights: State, tiny_shape: EncoderShape, partial: bool) -> None:
    path = saved(tmp_path, {"state_dict": {f"backbone.net.{key}": value for key, value in weights.items()}})
    with pytest.raises(CheckpointError, match=r"weights\.pth: .*'backbone\.net\.'.* without it"):
        load_weights(SamMed3D(tiny_shape), read_weights(path), source=path, allow_partial=partial)


def test_numbers_of_numpy_that_hold_objects_are_refused(tmp_path: Path, weights: State) -> None:
    trace = tmp_path / "trace"

    class Scalar:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return np.array(1.0)[()].__reduce__()[0], (np.dtype("O"), _Payload(trace))

    path = saved(tmp_path, {"state_dict": weights, "best": Scalar()})
    with pytest.raises(CheckpointError, match=r"weights\.pth: "):
        read_weights(path)
    assert not trace.exists()


def test_a_fine_tuned_file_may_hold_its_arguments(tmp_path: Path, weights: State) -> None:
    arguments = argparse.Namespace(lr=8e-4, task_name="ft", devices=[0])
    path = saved(tmp_path, {"model_state_dict": weights, "args": arguments, "optimizer": {"state": {}}})
    assert same(read_weights(path), weights)


class _Payload:
    """Leaves a trace when a loader lets it."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return pathlib.Path.touch, (self._trace,)


@pytest.mark.parametrize("place", ["beside", "inside the arguments"])
def test_any_other_class_is_refused_and_not_executed(tmp_path: Path, weights: State, place: str) -> None:
    trace = tmp_path / "trace"
    payload: object = _Payload(trace)
    if place != "beside":
        payload = argparse.Namespace(callback=payload)
    path = saved(tmp_path, {"model_state_dict": weights, "args": payload})
    with pytest.raises(CheckpointError, match=r"weights\.pth: refused, because it holds more than tensors"):
        read_weights(path)
    assert not trace.exists()


def test_our_own_checkpoints_give_their_averaged_weights(tmp_path: Path, tiny_model: MakeModel) -> None:
    model = tiny_model(seed=4)
    key = "sam.image_encoder.pos_embed"
    average = model.state_dict()[key] + 1
    path = saved(tmp_path, {"model": model.state_dict(), "engine": {"ema": {key: average}}, "app": "sam_med3d_ich"})
    expected = {**model.sam.state_dict(), key.removeprefix("sam."): average}
    assert same(read_weights(path), expected)


@pytest.mark.parametrize(
    "content",
    [
        {"model_state_dict": {}},
        {"model_state_dict": [1, 2]},
        {"state": 1, "epoch": 2},
        {"model": {"fc.weight": torch.zeros(2)}, "engine": {"ema": {}}},
        {"model": {"fc.weight": torch.zeros(2)}, "engine": {}},
        {"model": 3, "engine": 4},
        {0: torch.zeros(2)},
        {},
    ],
    ids=str,
)
def test_a_file_without_such_weights_is_an_error_that_names_it(tmp_path: Path, content: object) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"weights\.pth: (holds no SAM-Med3D weights|not a training)"):
        read_weights(path)


def test_a_missing_and_a_damaged_file_are_named(tmp_path: Path, weights: State) -> None:
    with pytest.raises(CheckpointError, match=r"weights\.pth: no such checkpoint file"):
        read_weights(tmp_path / "weights.pth")
    path = saved(tmp_path, weights)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"weights\.pth: damaged"):
        read_weights(path)


# ------------------------------------------------------------------------------------------------------ partial loads


def test_a_partial_load_stops_and_says_what_is_missing_and_which_flag_helps(
    weights: State, tiny_shape: EncoderShape
) -> None:
    del weights["image_encoder.pos_embed"]
    weights["head.extra"] = torch.zeros(1)
    model = SamMed3D(tiny_shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, source="given.pth")
    for words in (
        "given.pth",
        "1 missing: image_encoder.pos_embed",
        "1 unexpected: head.extra",
        "--allow_partial_weights",
    ):
        assert words in str(caught.value)
    assert same(model.state_dict(), before)


def test_an_allowed_partial_load_lists_everything_left_out(weights: State, tiny_shape: EncoderShape) -> None:
    del weights["image_encoder.pos_embed"]
    weights["head.extra"] = torch.zeros(1)
    weights["image_encoder.blocks.0.attn.rel_pos_d"] = torch.zeros(9, 12)
    model = SamMed3D(tiny_shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    left_out = load_weights(model, weights, source="given.pth", allow_partial=True)
    assert left_out == [
        "image_encoder.pos_embed: not in the file",
        "head.extra: not in the model",
        "image_encoder.blocks.0.attn.rel_pos_d: [9, 12] in the file, [5, 12] in the model",
    ]
    kept = {"image_encoder.pos_embed", "image_encoder.blocks.0.attn.rel_pos_d"}
    expected = {key: before[key] if key in kept else weights[key] for key in before}
    assert same(model.state_dict(), expected)


def test_weights_of_which_nothing_fits_are_an_error_even_so(tiny_shape: EncoderShape) -> None:
    with pytest.raises(CheckpointError, match=r"given\.pth: not one tensor fits"):
        load_weights(SamMed3D(tiny_shape), {"fc.weight": torch.zeros(2)}, source="given.pth", allow_partial=True)


# -------------------------------------------------------------------------------------------------- other image sizes


def test_nothing_is_interpolated_where_sizes_agree(
    weights: State, tiny_shape: EncoderShape, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        resized = resize_tables(weights, SamMed3D(tiny_shape))
    assert same(resized, weights)
    assert caplog.records == []


@pytest.mark.parametrize("image_size", [12, 24, 40])
def test_tables_for_another_image_size(
    weights: State, tiny_shape: EncoderShape, caplog: pytest.LogCaptureFixture, image_size: int
) -> None:
    weights["image_encoder.pos_embed"][:] = 0.25  # constant tables must stay constant
    slope = torch.linspace(-3, 3, 7)[:, None].expand(7, 12)  # of the global block, side 4: 7 offsets
    weights["image_encoder.blocks.1.attn.rel_pos_h"] = slope.clone()
    model = SamMed3D(replace(tiny_shape, image_size=image_size))
    with caplog.at_level(logging.WARNING):
        resized = resize_tables(weights, model)
    assert load_weights(model, resized, source="given.pth") == []
    grid = image_size // 4
    own = model.state_dict()
    torch.testing.assert_close(own["image_encoder.pos_embed"], torch.full((1, grid, grid, grid, 24), 0.25))
    table = own["image_encoder.blocks.1.attn.rel_pos_h"]
    assert table.shape == (2 * grid - 1, 12)
    assert (table.diff(dim=0) >= 0).all()  # still a slope, and still odd around offset 0
    torch.testing.assert_close(table, -table.flip(0))
    windowed = "image_encoder.blocks.0.attn.rel_pos_h"
    assert torch.equal(own[windowed], weights[windowed])
    assert "no longer the released one" in caplog.text


def test_position_tables_keep_their_axes(weights: State, tiny_shape: EncoderShape) -> None:
    for axis in range(3):
        ramp = torch.arange(4.0).view([-1 if i == axis else 1 for i in range(3)]).expand(4, 4, 4)
        weights["image_encoder.pos_embed"] = ramp[None, ..., None].expand(1, 4, 4, 4, 24).clone()
        model = SamMed3D(replace(tiny_shape, image_size=32))
        table = resize_tables(weights, model)["image_encoder.pos_embed"][0, ..., 0]
        steps = [bool(table.diff(dim=other).abs().max() > 0.1) for other in range(3)]
        assert steps == [other == axis for other in range(3)]


def test_the_encoder_alone_loads_into_an_encoder(weights: State, tiny_shape: EncoderShape) -> None:
    encoder = SamMed3D(tiny_shape).image_encoder
    part = encoder_state(weights)
    encoder.load_state_dict(part, strict=True)
    assert len(part) == sum(key.startswith("image_encoder.") for key in weights)
    part["pos_embed"] += 1
    assert not torch.equal(part["pos_embed"], weights["image_encoder.pos_embed"])  # a copy


# ---------------------------------------------------------------------------------------------------------------- hub

_FETCH = """
from quartet.apps.sam_med3d_ich.model.weights import fetch_released
from mlcore.base.errors import UserError
try:
    print("found", fetch_released())
except UserError as error:
    print("refused", error)
"""


def fetch_offline(home: Path, repository: Path) -> str:
    """What a fresh process without network says; the hub's client reads the environment when it is imported."""
    paths = os.pathsep.join([str(repository), str(repository / "libs")])
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    ended = subprocess.run(
        [sys.executable, "-c", _FETCH], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return ended.stdout.strip()


def test_without_network_and_cache_the_way_out_is_said(tmp_path: Path, repository: Path) -> None:
    said = fetch_offline(tmp_path / "empty", repository)
    assert said.startswith("refused the released weights blueyo0/SAM-Med3D/sam_med3d_turbo.pth cannot be fetched")
    for words in ("--weights FILE", "SAM_MED3D_WEIGHTS", "--weights none"):
        assert words in said


def test_a_prepared_cache_is_enough(tmp_path: Path, repository: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "hub" / "models--blueyo0--SAM-Med3D"
    file = root / "snapshots" / commit / "sam_med3d_turbo.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    assert fetch_offline(tmp_path, repository) == f"found {file}"
