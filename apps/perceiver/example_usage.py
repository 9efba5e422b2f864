"""The Perceiver from your own code, in seven short examples.

    python apps/perceiver/example_usage.py            about a minute on two cores
    python apps/perceiver/example_usage.py --quick    seconds: smaller models, the same code

Read it from top to bottom: each function stands alone and prints what it shows.
"""

import argparse
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from mlcore.base.distributed import World
from mlcore.cli.main import guarded
from mlcore.config.sections import TrainConfig
from mlcore.run.build import Data, TrainingSetup, build_trainer
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.data import PadCollate, UnifiedPreprocessor, create_synthetic_sequence_dataloader
from quartet.apps.perceiver.data.modalities import join
from quartet.apps.perceiver.data.samples import Sample
from quartet.apps.perceiver.model import (
    SIZES,
    PerceiverDecoder,
    PerceiverEncoder,
    PerceiverIO,
    PerceiverModel,
    create_perceiver_model,
)
from quartet.apps.perceiver.model.perceiver import ModelSize
from quartet.apps.perceiver.task import PerceiverTask


def three_sizes(*sizes: ModelSize) -> None:
    """`create_perceiver_model` knows three sizes; the work grows with the latents, not with the input."""
    for name in sizes:
        model = create_perceiver_model(input_dim=32, num_classes=10, model_size=name)
        logits = model(torch.randn(2, 100, 32))  # [batch, length, features] -> [batch, classes]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:<6} {parameters / 1e6:6.1f} M parameters, {SIZES[name]}, output {list(logits.shape)}")


def variable_lengths() -> None:
    """Sequences of different length share a batch; a mask says what is real, and padding changes nothing."""
    model = tiny_model(input_dim=4).eval()
    short, long = torch.randn(7, 4), torch.randn(20, 4)
    batch = torch.zeros(2, 20, 4)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    for row, sequence in enumerate((short, long)):
        batch[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    with torch.inference_mode():
        difference = (model(batch, mask)[0] - model(short[None])[0]).abs().max()
    print(f"padded from 7 to 20 positions, the logits move by {float(difference):.1e}")


def many_outputs() -> None:
    """Perceiver IO: one output for each query, any number of them, here 50 points of a curve from 30 samples of it."""
    width = 32
    encoder = PerceiverEncoder(
        2, d_model=width, num_heads=4, num_cross_attention_layers=1, num_self_attention_layers=1, num_latents=8
    )
    model = PerceiverIO(encoder, decoder=PerceiverDecoder(width, num_heads=4, num_outputs=1, num_queries=0))
    places = nn.Linear(1, width)  # turns a place on the curve into a query
    queries = places(torch.linspace(0, 1, 50)[:, None])  # [50, width]
    outputs = model(torch.randn(3, 30, 2), queries=queries)
    print(f"3 inputs of 30 tokens, 50 queries: output {list(outputs.shape)}")


def synthetic_batches() -> None:
    """A torch DataLoader of generated patterns, for trying things."""
    loader = create_synthetic_sequence_dataloader(batch_size=8, num_samples=64, seq_len_range=(20, 60), feature_dim=16)
    batch = next(iter(loader))
    print("a batch:", {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in batch.items()})


def mixed_modalities() -> None:
    """Text, an image and a time series as one sequence; each position says where it is and of which kind."""
    unified = UnifiedPreprocessor(text=True, patch_size=8, series_channels=3)
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    series = np.zeros((12, 3), dtype=np.float32)
    tokens = join(unified.encode_text("a photo"), unified.encode_image(image), unified.encode_series(series))
    logits = tiny_model(input_dim=unified.channels)(torch.from_numpy(tokens)[None])
    print(f"7 bytes + 16 patches + 12 times = {tokens.shape[0]} positions, output {list(logits.shape)}")


class Bursts(Dataset[Sample]):
    """Your own data: any dataset whose samples are dicts with `input` [length, features], `label`, and maybe `mask`."""

    def __init__(self, size: int, *, seed: int) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))  # a function of the index: the same in every epoch and worker
        label, length = index % 2, int(rng.integers(10, 30))
        sequence = rng.standard_normal((length, 2)).astype(np.float32)
        if label == 1:
            sequence[rng.integers(length)] += 8  # class 1 has one burst somewhere
        return {"input": sequence, "label": label, "mask": np.ones(length)}


def own_data(*, samples: int, epochs: int) -> None:
    """Train on your own dataset with the project's loop: a task, two data sets, a trainer."""
    torch.manual_seed(0)
    setup = TrainingSetup(
        task=PerceiverTask(model=tiny_model(input_dim=2), class_names=("calm", "burst")),
        train=Data(dataset=Bursts(samples, seed=0), collate=PadCollate()),
        evaluation={"val": Data(dataset=Bursts(64, seed=1), collate=PadCollate())},
    )
    config = PerceiverConfig(train=TrainConfig(epochs=epochs, batch_size=32, lr=3e-3))
    outcome = build_trainer(config, setup, world=World()).fit()
    print(f"{outcome.status} after {outcome.progress.step} steps: accuracy {outcome.metrics['accuracy']:.3f}")


def mixed_precision() -> None:
    """A plain torch loop in lower precision; `train.py --precision bf16` (or fp16) does the same, with care."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    model = tiny_model(input_dim=8).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)  # bf16 has the range of fp32: no scaling
    inputs, labels = torch.randn(16, 20, 8, device=device), torch.randint(0, 2, (16,), device=device)
    for _ in range(3):
        with torch.amp.autocast(device, dtype=dtype):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    print(f"{dtype} on {device}: loss {loss.item():.3f}, weights stay {next(model.parameters()).dtype}")


def tiny_model(*, input_dim: int) -> PerceiverModel:
    """Every number of the architecture is an argument."""
    return PerceiverModel(
        input_dim,
        d_model=32,
        num_heads=4,
        num_cross_attention_layers=1,
        num_self_attention_layers=2,
        num_latents=8,
        num_classes=2,
    )


def main() -> int:
    """Run all examples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer steps")
    quick: bool = parser.parse_args().quick
    sizes: tuple[ModelSize, ...] = ("small",) if quick else ("small", "base", "large")
    examples = (
        partial(three_sizes, *sizes),
        partial(variable_lengths),
        partial(many_outputs),
        partial(synthetic_batches),
        partial(mixed_modalities),
        partial(own_data, samples=64 if quick else 512, epochs=1 if quick else 4),
        partial(mixed_precision),
    )
    for number, example in enumerate(examples, 1):
        print(f"\n{number}. {(example.func.__doc__ or '').strip()}")
        example()
    return 0


if __name__ == "__main__":
    guarded(main)
