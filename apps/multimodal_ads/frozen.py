"""Which features of frozen encoders a run needs, and how they are computed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from apps.multimodal_ads.config import AdsConfig, FeaturesConfig
from apps.multimodal_ads.data.batches import KnownFeatures
from apps.multimodal_ads.data.images import content_digest, read_image
from apps.multimodal_ads.data.table import AdRow
from apps.multimodal_ads.features import FeatureStore, text_digest, weights_digest
from apps.multimodal_ads.model.assemble import Parts
from apps.multimodal_ads.model.classifier import given
from apps.multimodal_ads.model.pooling import AttentionPooling
from apps.multimodal_ads.text.encoder import TextEncoder
from apps.multimodal_ads.vision.interface import Tokens
from mlcore.distributed import World, barrier
from mlcore.engine import autocast, autocast_dtype

Named = Mapping[str, Sequence[AdRow]]


def text_features(
    named: Named, encoder: TextEncoder, *, settings: FeaturesConfig, root: Path, world: World
) -> dict[str, KnownFeatures]:
    """Embeddings of the splits' texts; the encoder always computes in its own precision.

    Args:
        named: Rows by split.
        encoder: The frozen encoder.
        settings: Batch size.
        root: Folder of all stores.
        world: Ranks; each computes a share.
    """
    store = FeatureStore(root / "text", {"encoder": encoder.fingerprint(), "width": encoder.width})
    digests = {name: [text_digest(row.text) for row in rows] for name, rows in named.items()}
    texts = [row.text for rows in named.values() for row in rows]

    def compute(positions: list[int]) -> dict[str, Tensor]:
        return {"embedding": encoder.encode([texts[i] for i in positions])}

    _fill(store, digests, compute, label="texts", batch_size=settings.encode_batch_size * 8, world=world)
    return {name: (store, digests[name]) for name in named}


def picture_features(
    named: Named, parts: Parts, *, config: AdsConfig, root: Path, world: World
) -> dict[str, KnownFeatures]:
    """What the frozen backbone says of the splits' pictures: pooled where pooling has no weights, else all tokens.

    Args:
        named: Rows by split.
        parts: Backbone and pooling.
        config: Precision, batch size, largest image.
        root: Folder of all stores.
        world: Ranks; each computes a share.

    Raises:
        UserError: An image cannot be read, or the features do not fit on the disk.
    """
    vision, pooling = given(parts.vision), given(parts.pooling)
    learned = isinstance(pooling, AttentionPooling)
    recipe = {
        "weights": weights_digest(vision),
        "preprocessing": vision.processor.fingerprint(),
        "kind": "tokens" if learned else config.pooling.name,
        "arithmetic": str(autocast_dtype(config.train.precision, world.device)),
    }
    store = FeatureStore(root / "pictures", recipe)
    digests = {name: [content_digest(row.image) for row in rows] for name, rows in named.items()}
    paths = [row.image for rows in named.values() for row in rows]
    limit = round(config.data.max_megapixels * 1e6)

    vision.to(world.device).eval()

    @torch.inference_mode()
    def compute(positions: list[int]) -> dict[str, Tensor]:
        pixels = vision.processor([read_image(paths[i], max_pixels=limit) for i in positions])
        with autocast(config.train.precision, world.device):
            tokens = vision({key: value.to(world.device) for key, value in pixels.items()})
            return _rows(tokens) if learned else {"pooled": pooling(tokens)}

    everything = [digest for split in digests.values() for digest in split]
    missing = store.missing(everything)
    if missing:
        store.check_room(len(missing), compute([missing[0]]))
    _fill(store, digests, compute, label="pictures", batch_size=config.features.encode_batch_size, world=world)
    return {name: (store, digests[name]) for name in named}


def _fill(
    store: FeatureStore,
    digests: Mapping[str, Sequence[str]],
    compute: Callable[[list[int]], dict[str, Tensor]],
    *,
    label: str,
    batch_size: int,
    world: World,
) -> None:
    everything = [digest for split in digests.values() for digest in split]
    barrier()  # all ranks have seen the same rows missing
    store.fill(everything, compute, label=label, batch_size=batch_size, rank=world.rank, world_size=world.size)
    barrier()
    store.refresh()


def _rows(tokens: Tokens) -> dict[str, Tensor]:
    rows = {"values": tokens.values}
    return rows if tokens.mask is None else {**rows, "mask": tokens.mask}
