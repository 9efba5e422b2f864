"""Pieces of messages: counted nouns, long lists, and several problems as one error."""

from collections.abc import Sequence

from mlcore.base.errors import UserError

__all__ = ["counted", "listed", "together"]

_SHOWN = 10


def counted(number: int, noun: str) -> str:
    """A number with its noun, which takes an s in the plural: "1 case", "2 cases"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str], *, shown: int = _SHOWN) -> str:
    """The first names and how many follow: "a, b and 3 more"."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def together(heading: object, problems: Sequence[str]) -> UserError:
    """One error for all problems: the only one as it stands, or the first ten below a heading, and how many follow.

    Args:
        heading: What has the problems; shown where there are several.
        problems: At least one; each names its file or row.
    """
    if len(problems) == 1:
        return UserError(problems[0])
    lines = [f"{heading}: {len(problems)} problems", *(p.replace("\n", "\n  ") for p in problems[:_SHOWN])]
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN} more")
    return UserError("\n  ".join(lines))
