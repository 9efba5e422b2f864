"""How many of the tokens a model sees are padding, with batches grouped by length and without.

python -m benchmarks.padding_waste            seconds
"""

import statistics
from collections.abc import Sequence

import numpy as np
import yaml

from benchmarks.common import ROOT, Goal, Options, Report, run_alone
from mlcore.data.order import EpochOrder
from quartet.apps.perceiver.data.ts_files import read_ts

_LIMIT = 0.05
_CONFIG = ROOT / "configs" / "perceiver" / "experiment" / "japanese_vowels.yaml"


def measure(options: Options) -> Report:
    """Share of padding over several epochs of JapaneseVowels' training split."""
    path = options.data_dir / "JapaneseVowels" / "JapaneseVowels_TRAIN.ts"
    title = "Padding on JapaneseVowels"
    method = (
        "Share of padded tokens among all tokens of an epoch when each batch is padded to its longest sequence; "
        "official training split, several epochs: mean (smallest..largest epoch)."
    )
    if not path.is_file():
        return Report(title=title, method=method, skipped=f"{path} is not there; name its folder with --data_dir")
    lengths = [len(sequence) for sequence in read_ts(path).sequences]
    batch_size = int(yaml.safe_load(_CONFIG.read_text(encoding="utf-8"))["train"]["batch_size"])
    epochs = 3 if options.quick else 20
    rows, raw = [], {}
    for size in sorted({batch_size, 32, 64}):
        grouped = [_waste(lengths, size, epoch=epoch, grouped=True) for epoch in range(epochs)]
        random = [_waste(lengths, size, epoch=epoch, grouped=False) for epoch in range(epochs)]
        raw[str(size)] = {"grouped": grouped, "random": random}
        rows.append([str(size), _text(grouped), _text(random)])
    mean = statistics.mean(raw[str(batch_size)]["grouped"])
    return Report(
        title=title,
        method=method,
        header=["batch size", "grouped by length (mlcore)", "random order"],
        rows=rows,
        goals=[
            Goal(f"less than {_LIMIT:.0%} with the experiment's batch size, {batch_size}", f"{mean:.2%}", mean < _LIMIT)
        ],
        notes=[f"{len(lengths)} sequences of {min(lengths)} to {max(lengths)} frames; {epochs} epochs."],
        raw=raw,
    )


def _waste(lengths: Sequence[int], batch_size: int, *, epoch: int, grouped: bool) -> float:
    order = EpochOrder(size=len(lengths), batch_size=batch_size, lengths=lengths if grouped else None)
    batches = [np.asarray(lengths)[list(key.indices)] for key in order.batches(epoch)]
    tokens = sum(len(batch) * int(batch.max()) for batch in batches)
    return 1.0 - sum(lengths) / tokens


def _text(shares: Sequence[float]) -> str:
    return f"{statistics.mean(shares):.1%} ({min(shares):.1%}..{max(shares):.1%})"


if __name__ == "__main__":
    run_alone(measure)
