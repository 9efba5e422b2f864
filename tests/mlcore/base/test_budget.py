import pytest

from mlcore.base.budget import READ_GIB, check_unpacked
from mlcore.base.errors import UserError

MIB = 2**20


def test_small_things_and_ordinary_ratios_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(READ_GIB, raising=False)
    check_unpacked("a.npz", unpacked=256 * MIB, stored=1)
    check_unpacked("a.npz", unpacked=10_000 * MIB, stored=100 * MIB)


def test_what_inflates_too_much_is_refused_and_the_user_can_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(READ_GIB, raising=False)
    with pytest.raises(UserError, match=rf"a\.npz: refused, because 1 MiB on disk claim to be 1.5 GiB.*{READ_GIB}=2"):
        check_unpacked("a.npz", unpacked=1536 * MIB, stored=MIB)
    monkeypatch.setenv(READ_GIB, "2")
    check_unpacked("a.npz", unpacked=1536 * MIB, stored=MIB)


def test_a_budget_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(READ_GIB, "much")
    with pytest.raises(UserError, match=f"{READ_GIB}=much: expected a number of GiB"):
        check_unpacked("a.npz", unpacked=1, stored=1)
