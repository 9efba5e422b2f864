"""Figures of each class: printed, drawn, and of one class alone.

    python apps/doc_ensemble/example_class_metrics_usage.py                 seconds, without network or data
    python apps/doc_ensemble/example_class_metrics_usage.py --output DIR    where the files go

A tiny network is trained for a moment on drawn patterns; with your own model and loader the calls are the same.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mlcore.base.files import ensure_folder
from mlcore.cli.main import guarded
from quartet.apps.doc_ensemble.class_analysis import calibration_sections, most_confused
from quartet.apps.doc_ensemble.class_metrics import (
    class_report,
    evaluate_class_performance,
    evaluate_single_class_performance,
    format_class_summary,
    predict_logits,
    write_class_files,
)
from quartet.apps.doc_ensemble.model.classifier import create_model
from quartet.apps.doc_ensemble.temperature import softmax

CLASSES = ("text", "table", "photo", "blank")


def drawn_pages(count: int, *, seed: int) -> TensorDataset:
    """Grey pages of 64 x 48 pixels: lines, a grid, noise, or nothing but paper, all under scanner noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    pages = torch.ones(count, 1, 64, 48)
    for page, label in zip(pages[:, 0], labels.tolist(), strict=True):
        step = int(torch.randint(4, 9, (), generator=generator))
        if label in (0, 1):
            page[::step] = 0.2
        if label == 1:
            page[:, ::step] = 0.2
        if label == 2:
            page[16:48, 8:40] = torch.rand(32, 32, generator=generator)
    noise = 0.35 * torch.randn(pages.shape, generator=generator)
    return TensorDataset((pages + noise).clamp(0, 1), labels)


def train(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], *, epochs: int) -> None:
    """A plain torch loop; `train.py` does the same, with care."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for pixels, label in loader:
            loss = nn.functional.cross_entropy(model(pixels), label)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def main() -> int:
    """Train, then show every kind of figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/doc_ensemble/example_class_metrics"))
    folder = ensure_folder(parser.parse_args().output)
    torch.manual_seed(0)
    model = create_model("test_resnet", class_names=CLASSES, pretrained=False, image_size=(64, 48), in_channels=1)
    train_loader = DataLoader(drawn_pages(128, seed=0), batch_size=16, shuffle=True)
    val_loader = DataLoader(drawn_pages(120, seed=1), batch_size=40)
    train(model, train_loader, epochs=3)

    logits, labels = predict_logits(model, val_loader, device="cpu")
    report = class_report(logits, labels=labels, class_names=CLASSES)
    print(format_class_summary(report))

    one = evaluate_single_class_performance(model=model, dataloader=val_loader, target_class=0, device="cpu")
    print(f"\nclass 0 ({CLASSES[0]}): " + ", ".join(f"{name} {value:.4f}" for name, value in one.items()))

    for pair in most_confused(labels, probabilities=softmax(logits)):
        print(f"{pair.forth} of {CLASSES[pair.first]} taken for {CLASSES[pair.second]}, {pair.back} the other way")

    train_report = evaluate_class_performance(model, train_loader, class_names=CLASSES)
    write_class_files(report, folder=folder, train=train_report)
    calibration_sections(logits, labels=labels, folder=folder)
    print(f"\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


if __name__ == "__main__":
    guarded(main)
