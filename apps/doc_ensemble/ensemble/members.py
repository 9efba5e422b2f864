"""What an ensemble needs to know of a member: what it takes, what it answers, and how to bring it into memory."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.data.upright import Upright

__all__ = ["InputFormat", "Member", "Network", "check_members", "class_difference", "format_of"]

Network = Callable[[Tensor], Tensor]
"""Pixels float32 [B, C, H, W] in 0..1 (C 1: grey, 3: RGB) to logits [B, classes]; normalising is its own business."""


class InputFormat(NamedTuple):
    """What pages must be made into for a network."""

    height: int  # pixels; of texts 1
    width: int  # pixels; of texts how many counts there are
    channels: int  # 1: grey, 3: RGB
    fit: Literal["letterbox", "resize", "text"] = "resize"  # how pages get this size; text: it is `count_words`
    upright: Upright | None = None  # rights pages before

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """Of a page's array."""
        return self.height, self.width, self.channels


class Member(Protocol):
    """One model of an ensemble, perhaps still on the disk; all but `load` is known without its weights."""

    @property
    def name(self) -> str:
        """What it is called in files and tables."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its input, pixels."""

    @property
    def in_channels(self) -> int:
        """1 for grey pages, 3 for colour."""

    @property
    def fit(self) -> Literal["letterbox", "resize", "text"]:
        """How pages got its input's size when it was trained; text: it reads their texts."""

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each of its outputs, in order."""

    def load(self, device: torch.device) -> Network:
        """Bring the network to `device`, ready to predict; whoever calls keeps the only reference to it."""


def format_of(member: Member) -> InputFormat:
    """The pages that a member takes; one that rights them before has an attribute `upright`."""
    return InputFormat(*member.image_size, member.in_channels, member.fit, getattr(member, "upright", None))


def check_members(members: Sequence[Member]) -> tuple[str, ...]:
    """The members' common class names.

    Raises:
        UserError: There is no member, two have one name, or one has other classes or another order of them than the
            first; outputs are never permuted to fit.
    """
    if not members:
        raise UserError("the ensemble has no members; list their checkpoints under ensemble.models")
    repeated = [name for name, count in Counter(member.name for member in members).items() if count > 1]
    if repeated:
        raise UserError(f"two members of the ensemble are called {repeated[0]!r}; give each its own name")
    first = tuple(members[0].class_names)
    for member in members[1:]:
        names = tuple(member.class_names)
        if names != first:
            raise UserError(
                f"the members {members[0].name!r} and {member.name!r} do not fit together: "
                f"{class_difference(first, names)}. Train {member.name!r} on the same classes, or leave it out"
            )
    return first


def class_difference(expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    """In which way the names of two lists of classes are not the same, in words."""
    missing, extra = [n for n in expected if n not in found], [n for n in found if n not in expected]
    if missing or extra:
        parts = [("the second lacks", missing), ("the first lacks", extra)]
        return "; ".join(f"{words} {_listed(names)}" for words, names in parts if names)
    if len(expected) != len(found):
        return f"{len(expected)} classes and {len(found)}, some of one name"
    place = next(i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1])
    return f"the same classes in another order, output {place} is {expected[place]!r} and {found[place]!r}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
