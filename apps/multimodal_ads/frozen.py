"""Which features of frozen encoders a run needs, and how they are computed."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlcore.base.distributed import World, any_rank, barrier, broadcast_object
from mlcore.base.errors import UserError
from mlcore.data.images import content_digest, read_image
from mlcore.data.loader import BatchLoader, worker_count
from mlcore.data.order import EpochOrder
from mlcore.training.engine import autocast, autocast_dtype
from quartet.apps.multimodal_ads.config import AdsConfig, FeaturesConfig
from quartet.apps.multimodal_ads.data.batches import KnownFeatures
from quartet.apps.multimodal_ads.data.table import AdRow
from quartet.apps.multimodal_ads.features import FeatureStore, text_digest
from quartet.apps.multimodal_ads.model.build import Parts
from quartet.apps.multimodal_ads.model.classifier import given
from quartet.apps.multimodal_ads.model.pooling import AttentionPooling
from quartet.apps.multimodal_ads.text.encoder import TextEncoder
from quartet.apps.multimodal_ads.vision.interface import Processor, Tokens

Named = Mapping[str, Sequence[AdRow]]
Rows = Mapping[str, Tensor]

_READING = "1"  # raise when `read_image` makes other pixels of a file
_PATIENCE = 60  # seconds until a part that one process wrote must be there for all; network file systems take some


def text_features(
    named: Named, encoder: TextEncoder, *, settings: FeaturesConfig, root: Path, world: World
) -> dict[str, KnownFeatures]:
    """Embeddings and tokens of the splits' texts; the encoder always computes in its own precision.

    Args:
        named: Rows by split.
        encoder: The frozen encoder.
        settings: Batch size.
        root: Folder of all stores.
        world: Ranks; each computes a share.
    """
    recipe = {"encoder": encoder.fingerprint(), "width": encoder.width, "arithmetic": _arithmetic(world.device)}
    store = FeatureStore(root / "text", recipe)
    digests = {name: [text_digest(row.text) for row in rows] for name, rows in named.items()}
    texts = [row.text for rows in named.values() for row in rows]
    batch_size = settings.encode_batch_size * 8

    def compute(positions: Sequence[int]) -> Iterator[Rows]:
        for start in range(0, len(positions), batch_size):
            some = [texts[i] for i in positions[start : start + batch_size]]
            yield {"embedding": encoder.encode(some), "tokens": encoder.count_tokens(some)}

    _fill(store, digests, compute, label="texts", batch_size=batch_size, world=world)
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
    store = FeatureStore(root / "pictures", _picture_recipe(parts, config, world.device))
    digests = {name: [content_digest(row.image) for row in rows] for name, rows in named.items()}
    vision = given(parts.vision)
    vision.to(world.device).eval()
    paths = [row.image for rows in named.values() for row in rows]
    limit, batch_size = round(config.data.max_megapixels * 1e6), config.features.encode_batch_size

    def compute(positions: Sequence[int]) -> Iterator[Rows]:
        read = partial(read_image, max_pixels=limit, decode_side=config.data.decode_side)
        inputs = _Inputs([paths[i] for i in positions], vision.processor, read)
        workers = worker_count(config.run.num_workers, samples=len(inputs), batch_size=batch_size, processes=world.size)
        for pixels in inputs.batches(batch_size, num_workers=min(workers, len(inputs) - 1)):
            yield _encode(parts, pixels, config=config, device=world.device)

    missing = store.missing([digest for split in digests.values() for digest in split])
    if missing:
        store.check_room(len(missing), next(iter(compute(missing[:1]))))
    _fill(store, digests, compute, label="pictures", batch_size=batch_size, world=world)
    return {name: (store, digests[name]) for name in named}


def _picture_recipe(parts: Parts, config: AdsConfig, device: torch.device) -> dict[str, Any]:
    return {
        "backbone": given(parts.base_digest),
        "reading": f"{_READING} Pillow {PIL.__version__}"
        + (f" from {config.data.decode_side} pixels" if config.data.decode_side else ""),
        "preprocessing": given(parts.vision).processor.fingerprint(),
        "kind": "tokens" if isinstance(parts.pooling, AttentionPooling) else config.pooling.name,
        "arithmetic": f"{autocast_dtype(config.train.precision, device)} {_arithmetic(device)}",
    }


def _arithmetic(device: torch.device) -> str:
    """What float32 means there: a GPU may multiply matrices in TF32."""
    return f"{device.type} {torch.get_float32_matmul_precision()}"


@torch.inference_mode()
def _encode(parts: Parts, pixels: Mapping[str, Tensor], *, config: AdsConfig, device: torch.device) -> Rows:
    """What is stored of prepared pictures."""
    pooling = given(parts.pooling)
    with autocast(config.train.precision, device):
        tokens: Tokens = given(parts.vision)({key: value.to(device) for key, value in pixels.items()})
        if not isinstance(pooling, AttentionPooling):
            return {"pooled": pooling(tokens)}
    return {"values": tokens.values} if tokens.mask is None else {"values": tokens.values, "mask": tokens.mask}


class _Inputs:
    """Pictures as the backbone takes them, read and prepared by the loader's workers."""

    def __init__(self, paths: Sequence[Path], processor: Processor, read: Callable[[Path], NDArray[np.uint8]]) -> None:
        self._paths = paths
        self._processor = processor
        self._read = read

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self._processor([self._read(self._paths[index])]).items()}

    def batches(self, batch_size: int, *, num_workers: int) -> Iterator[dict[str, Tensor]]:
        """All pictures in their order."""
        order = EpochOrder(size=len(self), batch_size=batch_size, shuffle=False)
        for batch in BatchLoader(self, order, num_workers=num_workers).epoch(0):
            yield batch.data


def _fill(
    store: FeatureStore,
    digests: Mapping[str, Sequence[str]],
    compute: Callable[[Sequence[int]], Iterable[Rows]],
    *,
    label: str,
    batch_size: int,
    world: World,
) -> None:
    """Compute what is missing; afterwards every rank knows every row.

    Raises:
        UserError: The ranks do not see each other's files.
    """
    everything = [digest for split in digests.values() for digest in split]
    for _ in range(_PATIENCE):
        store.refresh()
        if not any_rank(bool(store.missing(everything))):
            return
        # One list for all: another job may be filling the same store, so that ranks find different rows missing.
        missing = broadcast_object(store.missing(everything))
        store.fill(everything, missing[world.rank :: world.size], compute, label=label, batch_size=batch_size)
        if not missing:  # rank 0 has them all, another rank does not see them yet
            time.sleep(1)
        barrier()
    raise UserError(
        f"{store.folder}: what one process writes there another does not see; give a --cache_dir on a disk that all "
        "of them share, or --cache off"
    )
