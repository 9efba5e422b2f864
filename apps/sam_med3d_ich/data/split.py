"""Cases to training, validation and test, whole patients at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.words import counted

__all__ = ["SplitSizes", "Subject", "split_by_patient", "summary_counts", "wanted_counts"]


@dataclass(frozen=True)
class Subject:
    """What the split needs to know of a case."""

    name: str
    patient_id: str
    positive: bool


@dataclass(frozen=True, kw_only=True)
class SplitSizes:
    """How many cases go where; a count beats its fraction.

    Attributes:
        val_fraction: Share of the cases for validation.
        test_fraction: Share of the cases for the test.
        val_cases: Cases for validation.
        test_cases: Cases for the test.
        train_cases: Cases for training; None: all that are left.
    """

    val_fraction: float = 0.2
    test_fraction: float = 0.0
    val_cases: int | None = None
    test_cases: int | None = None
    train_cases: int | None = None


def split_by_patient(subjects: Sequence[Subject], sizes: SplitSizes, *, seed: int) -> dict[str, list[str]]:
    """Draw the splits; all scans of a patient go to one of them, and each gets its share of patients with a bleed.

    Args:
        subjects: All cases.
        sizes: How many cases each split gets. Where patients with several scans do not fit, it gets fewer, never more.
        seed: Names the draw.

    Returns:
        The names of the cases in "val", "test" and "train", in the order of `subjects`.

    Raises:
        UserError: The sizes are out of range or add up to more than there are, or a wanted split stays empty.
    """
    wanted = wanted_counts(sizes, total=len(subjects))
    patients: dict[str, list[Subject]] = {}
    for subject in subjects:
        patients.setdefault(subject.patient_id, []).append(subject)
    order = np.random.default_rng(seed).permutation(len(patients))
    left = [list(patients.values())[k] for k in order]
    splits: dict[str, list[str]] = {}
    for split, count in wanted.items():
        taken = _draw(left, count)
        left = [patient for patient in left if patient not in taken]
        names = {subject.name for patient in taken for subject in patient}
        splits[split] = [subject.name for subject in subjects if subject.name in names]
        if not names and (count > 0 or split == "train"):
            raise UserError(
                f"no case is left for the {split} split: {counted(len(subjects), 'case')} of "
                f"{counted(len(patients), 'patient')}, wanted "
                + ", ".join(f"{key} {value}" for key, value in wanted.items())
            )
    return splits


def wanted_counts(sizes: SplitSizes, *, total: int) -> dict[str, int]:
    """Cases that "val", "test" and "train" are to get of `total`.

    Raises:
        UserError: The sizes are out of range or add up to more than there are.
    """
    wanted = {}
    for split, fraction, count in (
        ("val", sizes.val_fraction, sizes.val_cases),
        ("test", sizes.test_fraction, sizes.test_cases),
    ):
        if not 0 <= fraction < 1:
            raise UserError(f"--{split}_fraction {fraction:g}: expected at least 0 and less than 1")
        wanted[split] = max(1, round(fraction * total)) if count is None and fraction > 0 else count or 0
    left = total - sum(wanted.values())
    wanted["train"] = left if sizes.train_cases is None else sizes.train_cases
    if min(wanted.values()) < 0 or sum(wanted.values()) > total:
        asked = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise UserError(f"{counted(total, 'case')} cannot be split into {asked}; ask for less")
    return wanted


def _draw(patients: Sequence[list[Subject]], count: int) -> list[list[Subject]]:
    """Patients with at most `count` cases together, positives and negatives in proportion."""
    positive = [patient for patient in patients if any(subject.positive for subject in patient)]
    negative = [patient for patient in patients if patient not in positive]
    total = sum(map(len, patients))
    share = round(count * sum(map(len, positive)) / total) if total else 0
    taken = _fill(positive, share)
    taken += _fill(negative, count - _cases(taken))
    return taken + _fill([patient for patient in positive if patient not in taken], count - _cases(taken))


def _fill(patients: Sequence[list[Subject]], room: int) -> list[list[Subject]]:
    taken: list[list[Subject]] = []
    for patient in patients:
        if _cases(taken) + len(patient) <= room:
            taken.append(patient)
    return taken


def _cases(patients: Sequence[list[Subject]]) -> int:
    return sum(map(len, patients))


def summary_counts(subjects: Mapping[str, Subject], names: Sequence[str]) -> tuple[int, int, int]:
    """Cases, patients and positive cases among `names`."""
    chosen = [subjects[name] for name in names]
    return len(chosen), len({one.patient_id for one in chosen}), sum(one.positive for one in chosen)
