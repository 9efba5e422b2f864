"""Labelled images: one folder per class, on disk or inside a tar archive (which is read, never unpacked)."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.data.images import SUFFIXES, read_image
from mlcore.data.packed import TarFiles
from quartet.apps.perceiver.data.samples import prevailing

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Parts of a data set by what they may be called."""
MAX_PIXELS = 100_000_000
"""Of an image, unless the settings say otherwise."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images of one size with their classes.

    Attributes:
        images: uint8 ``[N, H, W, 3]``, RGB.
        labels: int64 ``[N]``, indices into ``classes``.
        classes: Class names.
        origins: File of each image.
        skipped: One message per image left out.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    origins: tuple[str, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """An image's place: ``[.../][split/]class/name.jpg``."""

    path: PurePosixPath

    @property
    def label(self) -> str:
        return self.path.parent.name

    @property
    def split(self) -> str | None:
        name = self.path.parent.parent.name.lower()
        return SPLITS.get(name)


class ImageSource:
    """A folder or tar archive of images.

    Args:
        path: The folder or the archive; subfolders are classes, perhaps below ``train``, ``val`` and ``test``.

    Raises:
        UserError: If it cannot be read or holds no image in a class folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._files() as files:
            names = sorted(name for name in files if name.suffix.lower() in SUFFIXES and len(name.parts) > 1)
        if not names:
            raise UserError(f"{path}: no images found; expected <class>/<image>, perhaps below train/, val/ and test/")
        self._entries = [_Entry(name) for name in names]

    @property
    def splits(self) -> set[str]:
        """Which of ``train``, ``val`` and ``test`` there are folders for."""
        return {entry.split for entry in self._entries if entry.split is not None}

    @property
    def files(self) -> list[Path]:
        """Those of a folder, of all splits."""
        return [self.path / entry.path for entry in self._entries]

    def load(
        self,
        split: Literal["train", "val", "test"] | None = None,
        *,
        classes: tuple[str, ...] | None = None,
        image_size: int | None = None,
        max_pixels: int = MAX_PIXELS,
        on_bad_sample: Literal["error", "skip"] = "error",
    ) -> LabelledImages:
        """Decodes the images of a split into memory (``N * H * W * 3`` bytes), in order of their names.

        Args:
            split: Which part; ``None``: everything, without regard to split folders.
            classes: Classes in label order, to match training; ``None``: the names found, sorted.
            image_size: Side to resize to, in pixels; ``None``: all images must have one size.
            max_pixels: Larger ones cannot be used.
            on_bad_sample: Stop at an image that cannot be used, or leave it out.

        Raises:
            UserError: If there is no such split, a class is not in ``classes``, or an image cannot be used.
        """
        entries = [entry for entry in self._entries if split is None or entry.split == split]
        if not entries:
            found = ", ".join(sorted(self.splits)) or "none"
            raise UserError(f"{self.path}: no folder named {split} with images; splits found: {found}")
        classes = classes or tuple(sorted({entry.label for entry in entries}))
        unknown = sorted({entry.label for entry in entries} - set(classes))
        if unknown:
            raise UserError(f"{self.path}: classes {', '.join(unknown)} are not among {', '.join(classes)}")
        images: list[NDArray[np.uint8]] = []
        kept, skipped = [], []
        shapes = (one.shape for _, one in self._decode(entries, None, max_pixels) if not isinstance(one, UserError))
        expected = prevailing(shapes) if image_size is None else None
        for entry, decoded in self._decode(entries, image_size, max_pixels):
            message = _problem(decoded, self._origin(entry), expected=expected)
            if message is None and not isinstance(decoded, UserError):
                images.append(decoded)
                kept.append(entry)
            elif on_bad_sample == "error":
                raise UserError(f"{message} (--check_data names all such images, --on_bad_sample skip leaves them out)")
            else:
                skipped.append(str(message))
        if not images:
            raise UserError(f"{self.path}: none of {len(skipped)} images can be used; the first: {skipped[0]}")
        return LabelledImages(
            images=np.stack(images),
            labels=np.array([classes.index(entry.label) for entry in kept], dtype=np.int64),
            classes=classes,
            origins=tuple(map(self._origin, kept)),
            skipped=tuple(skipped),
        )

    def _origin(self, entry: _Entry) -> str:
        return f"{self.path}/{' '.join(str(entry.path).split())}"  # a name in an archive may have lines

    def _decode(
        self, entries: list[_Entry], image_size: int | None, max_pixels: int
    ) -> Iterator[tuple[_Entry, NDArray[np.uint8] | UserError]]:
        with self._files() as files:
            for entry in entries:
                try:
                    source, origin = files[entry.path].source(), self._origin(entry)
                    yield entry, decode_image(source, origin=origin, image_size=image_size, max_pixels=max_pixels)
                except UserError as error:
                    yield entry, error

    @contextmanager
    def _files(self) -> Iterator[dict[PurePosixPath, "_File"]]:
        if self.path.is_dir():
            paths = (path for path in self.path.rglob("*") if path.is_file())
            yield {PurePosixPath(path.relative_to(self.path).as_posix()): _File(path) for path in paths}
            return
        with TarFiles(self.path) as archive:
            yield {PurePosixPath(member.name): _File(member, archive) for member in archive.members}


@dataclass(frozen=True)
class _File:
    place: Path | tarfile.TarInfo
    archive: TarFiles | None = None

    def source(self) -> Path | bytes:
        """The file itself, or the content of the archive's."""
        if isinstance(self.place, Path):
            return self.place
        return b"" if self.archive is None else self.archive.read(self.place)


def decode_image(
    source: Path | bytes, *, origin: str, image_size: int | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decodes a picture of one of the formats in `mlcore.data.images` to RGB.

    Args:
        source: The file, or its bytes.
        origin: The file's name, for messages.
        image_size: Side to resize to, in pixels; ``None``: as it is.
        max_pixels: Larger ones are refused before they are decoded.

    Returns:
        uint8 ``[H, W, 3]``; see `read_image`.

    Raises:
        UserError: If the picture cannot be decoded in full.
    """
    image = read_image(source, max_pixels=max_pixels, name=origin)
    if image_size is None:
        return image
    return np.array(Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BICUBIC))


def _problem(decoded: NDArray[np.uint8] | UserError, origin: str, *, expected: tuple[int, ...] | None) -> str | None:
    if isinstance(decoded, UserError):
        return str(decoded)
    if expected is not None and decoded.shape != expected:
        height, width, _ = decoded.shape
        return f"{origin}: {height} x {width} pixels where others have {expected[0]} x {expected[1]}; set image_size"
    return None
