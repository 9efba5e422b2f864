import pytest

from mlcore.base.errors import UserError
from mlcore.base.reading import READ_GIB, check_unpacked, reading

MIB = 2**20


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (FileNotFoundError(2, "No such file or directory"), r"^a\.npz: cannot be read \(No such file or directory\)$"),
        (OSError("image file is truncated"), r"^a\.npz: damaged or not an \.npz file \(image file is truncated\)$"),
        (KeyError(), r"^a\.npz: damaged or not an \.npz file \(KeyError\)$"),
        (ValueError("x\n" * 999), r"^a\.npz: damaged or not an \.npz file \((x ){100} \.\.\.\)$"),
        (RecursionError("maximum depth"), r"^a\.npz: damaged or not an \.npz file \(nested too deeply\)$"),
        (MemoryError(), r"^a\.npz: there is not enough memory to read it$"),
        (UserError("a.npz: has no array 'x'"), r"^a\.npz: has no array 'x'$"),
    ],
)
def test_whatever_a_reader_raises_is_one_line_with_the_file(cause: Exception, told: str) -> None:
    with pytest.raises(UserError, match=told), reading("a.npz", "an .npz file"):
        raise cause


def test_what_is_no_fault_of_the_file_passes() -> None:
    with pytest.raises(KeyboardInterrupt), reading("a.npz", "an .npz file"):
        raise KeyboardInterrupt


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
