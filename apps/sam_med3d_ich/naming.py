"""Names of the files that are written for volumes."""

from collections.abc import Sequence
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.run.scorer import Item
from quartet.apps.sam_med3d_ich.data.volume import volume_name

__all__ = ["PROBABILITY", "names_of", "stem"]

PROBABILITY = "_probability"
"""What the names of probability maps end in."""


def stem(item: Item) -> str:
    """An item's own name."""
    path = Path(item.name) if item.path is None else item.path
    return (path.absolute().name if path.is_dir() else volume_name(path)) + (f"_{item.part}" if item.part else "")


def names_of(items: Sequence[Item], folder: Path) -> dict[tuple[Path | None, int], str]:
    """How the files of each item begin: its own name, with as many folders before it as tell it from the others.

    Raises:
        UserError: A mask would overwrite an input, or two are alike whatever is put before them.
    """
    items = list({(item.path, item.part): item for item in items}.values())
    above = [[] if item.path is None else [*item.path.absolute().parent.parts[1:]] for item in items]
    names = [stem(item) for item in items]
    while places := _doubles(names):
        if not any(above[place] for place in places):
            first, second = (items[place].name for place in places[:2])
            raise UserError(f"{first} and {second} would both become {names[places[0]]}.nii.gz; predict them apart")
        for place in places:
            names[place] = "_".join([*above[place][-1:], names[place]])
            above[place] = above[place][:-1]
    inputs = {item.path.resolve() for item in items if item.path is not None}
    for written in (folder / f"{name}{end}.nii.gz" for name in names for end in ("", PROBABILITY)):
        if written.resolve() in inputs:
            raise UserError(f"{written} would be overwritten by a mask; give another folder for the files")
    return {(item.path, item.part): name for item, name in zip(items, names, strict=True)}


def _doubles(names: Sequence[str]) -> list[int]:
    """Places of names of which a file could be another's, those of the same name together."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name.removesuffix(PROBABILITY), []).append(place)
    return [place for places in found.values() if len(places) > 1 for place in places]
