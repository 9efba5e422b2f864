import os
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlcore.trackers.table import TableTracker
from mlcore.trackers.tensorboard import TensorBoardTracker
from tests.mlcore.trackers.written import read_csv


def history(folder: Path) -> dict[tuple[int, str], float]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {(event.step, tag): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def rows(start: int, stop: int) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"train/loss": 1 / (step + 3), "val/accuracy": step / 7}) for step in range(start, stop)]


def test_what_is_read_back_equals_the_table(tmp_path: Path) -> None:
    """Exactly, after rounding to float32: the format holds no more."""
    table, tensorboard = TableTracker(tmp_path), TensorBoardTracker(tmp_path / "tensorboard")
    for step, values in rows(0, 20):
        table.log(step, values)
        tensorboard.log(step, values)
    table.close(status="finished")
    tensorboard.close(status="finished")
    expected = {
        (step, name): float(np.float32(value))
        for step, values in read_csv(tmp_path / "metrics.csv")
        for name, value in values.items()
    }
    assert len(expected) == 40
    assert history(tmp_path / "tensorboard") == expected


def test_resumption_replaces_the_rows_after_the_checkpoint(tmp_path: Path) -> None:
    killed = TensorBoardTracker(tmp_path)
    for step, values in rows(0, 9):
        killed.log(step, values)
    resumed = TensorBoardTracker(tmp_path, resume_step=5)
    for step, values in rows(6, 8):
        resumed.log(step, {name: -value for name, value in values.items()})
    resumed.close(status="finished")
    read = history(tmp_path)
    assert sorted({step for step, _ in read}) == list(range(8))
    assert [step for (step, tag), value in sorted(read.items()) if tag == "train/loss" and value < 0] == [6, 7]
    killed.close(status="failed")


def test_rows_are_on_disk_when_log_returns(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    tracker.log(1, {"a": 0.5})
    assert history(tmp_path) == {(1, "a"): 0.5}
    tracker.close(status="finished")


def test_pictures_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    matplotlib.image.imsave(tmp_path / "picture.png", pixels)
    tracker = TensorBoardTracker(tmp_path / "tensorboard")
    tracker.image(3, "curves", tmp_path / "picture.png")
    tracker.close(status="finished")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [event] = events.Images("curves")
    assert (event.step, event.height, event.width) == (3, 4, 6)
    (tmp_path / "back.png").write_bytes(event.encoded_image_string)
    back = matplotlib.image.imread(tmp_path / "back.png")
    assert np.array_equal(np.rint(back * 255).astype(np.uint8)[..., :3], pixels)


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match=f"{tmp_path}{os.sep}file"):
        TensorBoardTracker(tmp_path / "file")
