"""What the tests of the apps' pages rely on: every block and command of a page is found, and so is a broken link."""

from pathlib import Path

import pytest

from tests import docs_page
from tests.docs_page import Block, Page, commands

TEXT = r"""# Demo

See [the end](#the-end), [nothing](#nowhere), [a file](other.md), [no file](missing.md), [the web](https://example.org).

## Training: `train.py`

```bash
# A comment
make train APP=demo ARGS="--name 'a b'"

python apps/demo/train.py --lr 1e-3 \
    --epochs 2
```

```python
assert 1 + 1 == 3
```

### The end

```text
nothing
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "demo.md").write_text(TEXT, encoding="utf-8")
    (tmp_path / "docs" / "other.md").touch()
    monkeypatch.setattr(docs_page, "REPOSITORY", tmp_path)
    return Page("demo")


def test_blocks_know_their_heading(page: Page) -> None:
    assert page.blocks("text") == [Block("The end", "text", "nothing\n")]
    assert [block.heading for block in page.blocks("bash")] == ["Training: `train.py`"]
    assert page.blocks("yaml") == []


def test_commands_are_whole_lines_that_python_can_run(page: Page) -> None:
    (block,) = page.blocks("bash")
    found = commands(block.text)
    assert found[1] == "python apps/demo/train.py --lr 1e-3 --epochs 2"
    assert page.as_python(found[0]) == ["apps/demo/train.py", "--name", "a b"]
    assert page.as_python(found[1]) == ["apps/demo/train.py", "--lr", "1e-3", "--epochs", "2"]
    with pytest.raises(AssertionError):
        page.as_python("rm -r outputs")


def test_a_wrong_block_of_python_fails(page: Page) -> None:
    (block,) = page.blocks("python")
    with pytest.raises(AssertionError):
        page.execute(block)


def test_broken_links_are_named(page: Page) -> None:
    assert page.broken_links() == {"nowhere", "missing.md"}
