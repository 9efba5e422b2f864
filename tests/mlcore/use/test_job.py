"""Scoring as a job: the same table whatever ends it, however often, and however many processes share it."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlcore.base.errors import UserError
from mlcore.run.predictor import Predictor
from mlcore.run.scorer import Item
from mlcore.use import job as module
from mlcore.use.inputs import Files, Inputs, Once, find_inputs
from mlcore.use.job import Done, Job, run_job

ROWS = 300
BATCH = 8


@dataclass(frozen=True)
class Answer:
    text: str
    number: float

    def row(self) -> list[object]:
        return [self.text, self.number]


class Upper:
    """Reads texts from files and a column; what else is in a batch enters the number, as rounding would."""

    columns: Sequence[str] = ("upper", "number")
    suffixes: Sequence[str] = (".txt",)
    inputs: Mapping[str, Sequence[str]] = {"path": ("file",), "text": ("text",)}
    batch_size = BATCH
    limit = 10**9  # batches after which the process dies

    def __init__(self) -> None:
        self.batches = 0
        self.seen: list[str] = []

    def items(self, path: Path) -> Sequence[Item]:
        return [Item(f"{path}, line {number}", path, number) for number in range(len(path.read_text().splitlines()))]

    def load(self, item: Item) -> str:
        text = item.value("text") or (item.path.read_text().splitlines()[item.part] if item.path else "")
        if not text:
            raise UserError("is empty")
        return text

    def collate(self, samples: Sequence[str]) -> list[str]:
        return list(samples)

    def predict(self, batch: list[str]) -> list[Answer]:
        self.batches += 1
        if self.batches > self.limit:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += batch
        return [Answer(text.upper(), len("".join(batch)) / 3) for text in batch]

    def save(self, item: Item, prediction: Answer, folder: Path) -> None:
        (folder / f"{prediction.text}.txt").write_text(item.name)


def predictor(scorer: Upper, weights: str = "w") -> Predictor:
    app: Any = SimpleNamespace(name="upper")
    return Predictor(app=app, scorer=scorer, source=Path("best.pth"), about={}, identity={"weights": weights})


def write_rows(path: Path, rows: int = ROWS) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "upper"])
        for number in range(rows):
            text = "" if number % 50 == 7 else f"text {number // 2 * 2 if number % 3 else number % 6}"
            writer.writerow([f"r{number}", text, f"own {number}"])


def job_of(folder: Path, **changes: Any) -> Job:
    scorer = Upper()
    table: Inputs = find_inputs([str(folder / "t.csv")], scorer)
    settings: dict[str, Any] = {"predictor": predictor(scorer), "inputs": table, "batch_size": BATCH, "workers": 0}
    return Job(**{**settings, "output": folder / "out.csv", **changes})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARD", 20)


def test_every_row_has_its_own_columns_and_its_answer_and_equal_ones_are_predicted_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.csv")
    job = job_of(tmp_path)
    done = run_job(job)
    rows = read(tmp_path / "out.csv")
    assert [row["id"] for row in rows] == [f"r{number}" for number in range(ROWS)]
    given = read(tmp_path / "t.csv")
    assert [row["upper"] for row in rows] == [row["upper"] for row in given], "the caller's column is passed through"
    for row, asked in zip(rows, given, strict=True):
        assert (row["model_upper"], bool(row["problem"])) == (asked["text"].upper(), not asked["text"])
    scorer: Any = job.predictor.scorer
    assert len(scorer.seen) == len(set(scorer.seen)) == len({row["text"] for row in given if row["text"]})
    empty = sum(not row["text"] for row in given)
    assert done == Done(
        rows=ROWS, predicted=len(scorer.seen) + 1, problems=empty, first=f"{tmp_path}/t.csv, line 9: is empty"
    )
    assert not job.folder.exists()


class Careful(Upper):
    def forewarn(self, items: Sequence[Item]) -> Sequence[str]:
        assert not self.seen
        return [f"{len(items)} items begin with {items[0].value('text')}"]


def test_what_an_app_has_to_say_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(tmp_path / "t.csv")
    run_job(job_of(tmp_path, predictor=predictor(Careful())))
    assert f"{ROWS} items begin with text 0" in caplog.messages
    monkeypatch.setattr(module, "_LOOKED_AT", 10)
    run_job(job_of(tmp_path, predictor=predictor(Careful())))
    assert "the first 10 inputs: 10 items begin with text 0" in caplog.messages


CHILD = """
import sys
from pathlib import Path
from mlcore.use import job as module
from tests.mlcore.use.test_job import Upper, job_of
module._SHARD = 20
Upper.limit = int(sys.argv[2])
module.run_job(job_of(Path(sys.argv[1]), workers=int(sys.argv[3])))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_job_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, repository: Path) -> None:
    write_rows(tmp_path / "t.csv")
    run_job(job_of(tmp_path, output=tmp_path / "whole.csv"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (repository / "libs", repository)))}
    codes, sizes = [], []
    for limit, workers in ((1, 0), (4, 1), (7, 0), (10**9, 1)):
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(limit), str(workers)]
        codes.append(subprocess.run(command, env=environment, check=False, cwd=repository).returncode)
        sizes.append(len(list((tmp_path / "out.csv.parts").glob("*.jsonl"))))
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert sizes[0] < sizes[1] < sizes[2], "each went on where the one before was"
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_job_goes_on_with_its_own_parts_only(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.csv")
    job = job_of(tmp_path)
    job.folder.mkdir()
    (job.folder / "notes.txt").touch()
    with pytest.raises(UserError, match="of no scoring job"):
        run_job(job)
    (job.folder / "notes.txt").unlink()
    job.folder.rmdir()
    with pytest.raises(UserError, match=r"t\.csv, line 9: is empty"):
        run_job(job_of(tmp_path, strict=True))
    for changes, what in (
        ({"predictor": predictor(Upper(), "other")}, "another model"),
        ({"batch_size": BATCH + 1}, "another batch_size"),
    ):
        with pytest.raises(UserError, match=what):
            run_job(job_of(tmp_path, **changes))
    write_rows(tmp_path / "t.csv", ROWS + 1)
    with pytest.raises(UserError, match="another inputs"):
        run_job(job_of(tmp_path))


def test_each_of_equal_rows_is_named_by_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": ""}\n{"text": null}\n', encoding="utf-8")
    scorer, table = Upper(), tmp_path / "t.jsonl"
    inputs = find_inputs([str(table)], scorer)
    done = run_job(
        Job(predictor=predictor(scorer), inputs=inputs, output=tmp_path / "out.csv", batch_size=2, workers=0)
    )
    assert done is not None
    assert (done.predicted, done.problems) == (2, 2)
    problems = [row["problem"] for row in read(tmp_path / "out.csv")]
    assert problems == ["", f"{table}, line 3: is empty", f"{table}, line 4: is empty"]


def test_a_column_that_may_be_misspelt_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (tmp_path / "t.csv").write_text("texts,file,label\na,b.txt,c\n", encoding="utf-8")
    find_inputs([str(tmp_path / "t.csv")], Upper())
    assert [message.partition("t.csv: ")[2] for message in caplog.messages] == [
        "reads file; without text",
        "the column texts is not read, did you mean 'text'?",
    ]


def test_an_empty_row_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,text\n1,first\n,\n3,third\n", encoding="utf-8")
    done = run_job(job_of(tmp_path))
    assert done is not None
    assert (done.rows, done.problems) == (3, 1)
    rows = read(tmp_path / "out.csv")
    assert [row["id"] for row in rows] == ["1", "", "3"]
    assert [row["upper"] for row in rows] == ["FIRST", "", "THIRD"]
    assert "is empty" in rows[1]["problem"]


def test_files_hold_several_things_and_what_is_missing_is_a_row(tmp_path: Path) -> None:
    for name in ("two.txt", "._two.txt"):
        (tmp_path / name).write_text("one\ntwo\n")
    scorer = Upper()
    found = find_inputs([str(tmp_path / "two.txt"), str(tmp_path / "gone.txt"), str(tmp_path)], scorer)
    (files := tmp_path / "files").mkdir()
    run_job(Job(predictor=predictor(scorer), inputs=found, output=tmp_path / "o.jsonl", batch_size=2, files=files))
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["upper"] for row in rows] == ["ONE", "TWO", None, "ONE", "TWO"]
    assert rows[2]["problem"] == f"{tmp_path / 'gone.txt'}: no such file or folder"
    assert sorted(path.name for path in files.iterdir()) == ["ONE.txt", "TWO.txt"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_output_can_be_an_input(suffix: str, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    write_rows(tmp_path / "t.csv", 30)
    run_job(job_of(tmp_path, output=tmp_path / f"out{suffix}"))
    scorer = Upper()
    again = find_inputs([str(tmp_path / f"out{suffix}")], scorer)
    run_job(Job(predictor=predictor(scorer), inputs=again, output=tmp_path / "again.csv", batch_size=BATCH))
    first, second = read(tmp_path / "again.csv"), [row["id"] for row in read(tmp_path / "t.csv")]
    assert [row["id"] for row in first] == second
    assert all(row["model_upper"] == row["model_model_upper"] for row in first)


def test_numbers_in_a_cell_are_no_path_however_they_look() -> None:
    cells = ("[[1, 2]]", "[\0]", f"[{'1, ' * 5000}1]", "[[1, 2]]")
    once = Once(Files([Item("row", None, values=(("path:series", cell),)) for cell in cells]))
    assert once.kinds.tolist() == [0, 1, 2, 0]
