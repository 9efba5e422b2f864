"""The files that tables name."""

from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from mlcore.data.places import Places


@pytest.fixture(name="base")
def _base(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    (base / "a" / "b").mkdir(parents=True)
    for place in ("a/one.png", "a/b/two.png", "../outside.png"):
        (base / place).touch()
    (base / "a" / "near.png").symlink_to(base / "a" / "b" / "two.png")
    (base / "a" / "far.png").symlink_to(tmp_path / "outside.png")
    (base / "link").symlink_to(base / "a" / "b", target_is_directory=True)
    return base


def test_a_file_is_where_its_links_lead_also_in_a_folder_that_is_known(base: Path) -> None:
    places = Places(base / "table.csv", None)
    for text in ("a/one.png", "a/near.png", "link/two.png", "link/../one.png", "a/../a/one.png", "a/b/../one.png"):
        assert places.find(text) == (base / text).resolve()
    for text in ("a/far.png", "a/../../outside.png"):
        with pytest.raises(UserError, match="is outside of"):
            places.find(text)
    for text in ("a/b/..", "a", "a/b/."):
        with pytest.raises(UserError, match="is a folder"):
            places.find(text)
    for text in ("a/one\0.png", f"a/{'x' * 5000}.png"):
        with pytest.raises(UserError, match="is not a path"):
            places.find(text)
    for text in ("a/nothing.png", "a/one.png/inside.png"):
        with pytest.raises(UserError, match="no such file"):
            places.find(text)
