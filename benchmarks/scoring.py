"""200,000 pages scored by `quartet predict`, beside plain loops of the same network; killed five times; its memory.

python -m benchmarks.scoring                  about half an hour on two cores
"""

import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import Goal, Options, Report, alternate, median_text, ratio, ratio_text, run_alone, seconds
from mlcore.run import load_run
from mlcore.run.predictor import Predictor
from quartet.apps.doc_ensemble.data.generated import TYPES, draw_page

_BATCH, _WORKERS, _KILLS, _AT_LEAST = 64, 2, 5, 2.0
_SIZE = (48, 64)  # pixels, of the small pages
_TRAIN = (
    *("train", "doc_ensemble", "--demo", "data.num_train=68", "data.num_val=34", "data.num_test=17", "train.epochs=1"),
    *("model.image_size=[64, 48]", "run.num_workers=0", "tracking.tensorboard=false"),
)
_PEERS = ("one by one", "DataLoader, no workers", "DataLoader, 2 workers")


def measure(options: Options) -> Report:
    """Rates of all sides, sides in turns; then kills and memory of the whole job."""
    rows, of_rates, rounds = (2_000, 500, 1) if options.quick else (200_000, 10_000, 3)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = folder / "run"
        _quartet(*_TRAIN, "--output_dir", str(run), cwd=folder)
        rates = {}
        for kind in ("small", "384"):
            count = of_rates if kind == "small" else of_rates // 2
            table = _write(folder / kind, count, _SIZE if kind == "small" else (288, 384))
            _check(run, table)
            sides = {"ours": partial(_job, run, table), **{name: partial(_script, name, run, table) for name in _PEERS}}
            rates[kind] = alternate({name: partial(_rate, side, count) for name, side in sides.items()}, rounds=rounds)
            print(f"{kind}: {rates[kind]}", flush=True)
        table = _write(folder / "all", rows, _SIZE)
        memory: list[float] = []
        whole = _rate(partial(_job, run, table, memory=memory), rows)
        print(f"{rows} rows: {whole:.0f} rows/s, MiB {memory[:: max(1, len(memory) // 20)]}", flush=True)
        expected = table.with_suffix(".out.csv").read_bytes()
        same = _killed(run, table, rows) == expected
    return _report(rates, rows, whole, memory, same=same)


def _report(
    rates: dict[str, dict[str, list[float]]], rows: int, whole: float, memory: list[float], *, same: bool
) -> Report:
    quarter = max(1, len(memory) // 4)
    early, late = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    titles = {"small": f"{_SIZE[0]} x {_SIZE[1]} pixels", "384": "288 x 384 pixels"}
    goals = [
        Goal(
            f"{titles[kind]}: at least {_AT_LEAST:.0f} times {peer}",
            f"{ratio(found['ours'], found[peer])[0]:.2f}",
            ratio(found["ours"], found[peer])[0] >= _AT_LEAST,
        )
        for kind, found in rates.items()
        for peer in _PEERS[:1]
    ]
    goals += [
        Goal(f"{rows:,} rows, killed {_KILLS} times: the same table", "the same" if same else "another", same),
        Goal(
            "memory is flat: the last quarter within 5 % of the second",
            f"{early:.0f} to {late:.0f} MiB",
            late < 1.05 * early,
        ),
    ]
    cells = [
        [
            titles[kind],
            *(median_text(found[name], digits=0) for name in ("ours", *_PEERS)),
            *(ratio_text(found["ours"], found[name]) for name in _PEERS),
        ]
        for kind, found in rates.items()
    ]
    return Report(
        title="Scoring as a job",
        method=(
            "CPU, one thread, fp32. The documents' demo network on drawn pages, JPEG, each another file and another "
            "row of a table; classes and probabilities are written as a table. Ours: `quartet predict RUN TABLE`, in "
            f"batches of {_BATCH}, {_WORKERS} processes reading ahead. The loops are scripts that read with the same "
            "functions and ask the same network: page by page; in batches by a DataLoader without workers, or with "
            "two. Whole processes with their imports on all sides. Before, all classes are compared. Rows per second, "
            "median (smallest..largest); ratios are of the same round."
        ),
        header=["pages", "ours", *_PEERS, *(f"ours / {name}" for name in _PEERS)],
        rows=cells,
        goals=goals,
        notes=[f"All {rows:,} rows by one command: {whole:.0f} rows per second; memory is that of the main process."],
        raw={"rates": rates, "rows_per_second": whole, "memory_mib": memory},
    )


def _write(folder: Path, rows: int, size: tuple[int, int]) -> Path:
    """A table of so many drawn pages, all different."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    drawn = [np.asarray(draw_page(name, rng).convert("L").resize(size), dtype=np.int16) for name in TYPES]
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image"])
        for row in range(rows):
            path = folder / f"{row // 1000:03d}" / f"{row:06d}.jpg"
            path.parent.mkdir(exist_ok=True)
            pixels = np.roll(drawn[row % len(drawn)], row // len(drawn), axis=0) + rng.integers(-9, 10)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)
            writer.writerow([f"page {row}", path.relative_to(folder)])
    return folder / "table.csv"


def _rate(side: partial[None], rows: int) -> float:
    return rows / seconds(side)


# ---------------------------------------------------------------------------------------------------------------- ours


def _quartet(*arguments: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", "quartet", *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def _command(run: Path, table: Path, output: Path) -> list[str]:
    flags = ["--batch_size", str(_BATCH), "--num_workers", str(_WORKERS), "--device", "cpu"]
    return [sys.executable, "-m", "quartet", "predict", str(run), str(table), "--output", str(output), *flags]


def _job(run: Path, table: Path, memory: list[float] | None = None) -> None:
    output = table.with_suffix(".out.csv")
    output.unlink(missing_ok=True)
    started = subprocess.Popen(_command(run, table, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watched = psutil.Process(started.pid)
    while started.poll() is None:
        if memory is not None and watched.status() != psutil.STATUS_ZOMBIE:
            memory.append(watched.memory_info().rss / 2**20)
        time.sleep(0.2)
    if started.returncode:
        raise RuntimeError(f"predict ended with {started.returncode}")


def _killed(run: Path, table: Path, rows: int) -> bytes:
    """The table of a job that was killed at random instants of its length."""
    output, rng = table.with_suffix(".killed.csv"), np.random.default_rng(1)
    parts = output.with_name(f"{output.name}.parts")
    shards = rows / (-(-max(1, rows // 1000) // _BATCH) * _BATCH)  # files that `mlcore.use.job` writes
    for share in sorted(rng.uniform(0, 0.95, _KILLS)):
        started = subprocess.Popen(_command(run, table, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while started.poll() is None and sum(1 for _ in parts.glob("*")) < 1 + share * shards:
            time.sleep(0.05)
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        print(f"killed with {sum(1 for _ in parts.glob('*'))} files", flush=True)
    subprocess.run(_command(run, table, output), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return output.read_bytes()


# ------------------------------------------------------------------------------------------------------ the plain loops


class _Pages(Dataset[Any]):
    def __init__(self, predictor: Predictor, paths: list[Path]) -> None:
        self.scorer, self.paths = predictor.scorer, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        (item,) = self.scorer.items(self.paths[index])
        return self.scorer.load(item)


def _script(name: str, run: Path, table: Path) -> None:
    code = "import sys; from benchmarks.scoring import loop; loop(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, name, str(run), str(table)], check=True)


def loop(name: str, run: str, rows_of: str) -> None:
    """What a user would write: the rows of a table through a run's network, without a job."""
    torch.set_num_threads(1)
    table = Path(rows_of)
    predictor = load_run(run, device="cpu")
    output = table.with_suffix(".loop.csv")
    with table.open(encoding="utf-8", newline="") as file, output.open("w", encoding="utf-8", newline="") as written:
        rows, writer = list(csv.DictReader(file)), csv.writer(written)
        writer.writerow(["id", *predictor.scorer.columns])
        found = _predicted(name, predictor, [table.parent / row["image"] for row in rows])
        writer.writerows([row["id"], *values] for row, values in zip(rows, found, strict=True))


def _predicted(name: str, predictor: Predictor, paths: list[Path]) -> Iterator[list[object]]:
    pages, scorer = _Pages(predictor, paths), predictor.scorer
    if name == "one by one":
        for place in range(len(pages)):
            yield list(scorer.predict(scorer.collate([pages[place]]))[0].row())
        return
    workers = 2 if "2" in name else 0
    loader = DataLoader(pages, batch_size=_BATCH, num_workers=workers, collate_fn=scorer.collate)
    for batch in loader:
        yield from (list(one.row()) for one in scorer.predict(batch))


def _check(run: Path, table: Path) -> None:
    """That all sides say the same."""
    _job(run, table)
    ours = _column(table.with_suffix(".out.csv"))
    for name in _PEERS:
        _script(name, run, table)
        if _column(table.with_suffix(".loop.csv")) != ours:
            raise RuntimeError(f"{name} and ours do not agree")


def _column(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["class"] for row in csv.DictReader(file)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    run_alone(measure)
