"""ConvNeXt in its sizes, with attention and for focal loss.

    python apps/doc_ensemble/example_convnext_usage.py                 seconds, without network: a tiny ConvNeXt
    python apps/doc_ensemble/example_convnext_usage.py --pretrained    ConvNeXt Tiny with its published weights

Read it from top to bottom: each function stands alone and prints what it shows.
"""

import argparse
from functools import partial

import torch

from mlcore.cli.main import guarded
from quartet.apps.doc_ensemble.model.classifier import DocClassifier, make_model
from quartet.apps.doc_ensemble.model.convnext import SIZES, create_convnext_model

_TINY = "test_convnext"  # timm's own for trying things, 0.3 M parameters


def four_sizes() -> None:
    """The four sizes, counted on the meta device: no memory, no weights."""
    for name in SIZES:
        with torch.device("meta"):
            model = create_convnext_model(model_name=name, num_classes=17, pretrained=False)
        print(f"{name:<16} {_millions(model):6.1f} M parameters with 17 classes")


def plain(*, name: str, pretrained: bool) -> None:
    """The basic model; pages need not be square."""
    model = create_convnext_model(model_name=name, num_classes=17, dropout_rate=0.1, pretrained=pretrained)
    pages = torch.rand(2, 3, 256, 192)  # [batch, RGB, height, width], 0 black to 1 white; it normalises by itself
    print(f"{_millions(model):.1f} M parameters, output {list(model(pages).shape)}")


def with_attention(*, name: str, pretrained: bool) -> None:
    """Attention over the cells of the last feature map, beside the network's own pooling."""
    model = create_convnext_model(
        model_name=name, num_classes=17, use_attention=True, attention_dim=256, pretrained=pretrained
    )
    width = model.embed(torch.rand(1, 3, 256, 192)).shape[1]
    print(f"{_millions(model):.1f} M parameters, {width} features per page, 256 of them from attention")


def with_focal_loss(*, name: str, pretrained: bool) -> None:
    """The focal loss discounts pages that are easy; the model carries it as `model.loss`."""
    model = create_convnext_model(
        model_name=name, num_classes=17, use_focal_loss=True, alpha=1.0, gamma=2.0, pretrained=pretrained
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pages, labels = torch.rand(8, 3, 64, 48), torch.arange(8)
    shown = []
    for _ in range(5):
        loss = model.loss(model(pages), labels).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        shown.append(f"{loss.item():.3f}")
    print(f"loss of five steps: {', '.join(shown)}")


def saved_and_rebuilt(*, name: str) -> None:
    """`model.metadata` are plain values that rebuild the model, class names included, without any download."""
    model = create_convnext_model(model_name=name, num_classes=3, pretrained=False, use_attention=True).eval()
    again = make_model(model.metadata).eval()
    again.load_state_dict(model.state_dict())
    pages = torch.rand(1, 3, 64, 48)
    with torch.inference_mode():
        print(f"the same logits: {torch.equal(model(pages), again(pages))}, classes {again.metadata['class_names']}")


def _millions(model: DocClassifier) -> float:
    return sum(weight.numel() for weight in model.parameters()) / 1e6


def main() -> int:
    """Run all examples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", action="store_true", help="published weights, from the hub or its cache")
    pretrained: bool = parser.parse_args().pretrained
    name = "convnext_tiny" if pretrained else _TINY
    examples = (
        partial(four_sizes),
        partial(plain, name=name, pretrained=pretrained),
        partial(with_attention, name=name, pretrained=pretrained),
        partial(with_focal_loss, name=name, pretrained=pretrained),
        partial(saved_and_rebuilt, name=name),
    )
    for number, example in enumerate(examples, 1):
        print(f"\n{number}. {(example.func.__doc__ or '').strip()}")
        example()
    return 0


if __name__ == "__main__":
    guarded(main)
