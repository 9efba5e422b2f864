"""Rows of a table become samples; pictures are read where they are needed only."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.data.batches import SampleSource
from quartet.apps.multimodal_ads.data.table import AdRow

LIMIT = 100_000_000


def test_dataset(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    rows = [AdRow(tmp_path / "a.png", 1, "", "t.csv, line 2"), AdRow(tmp_path / "none.png", 0, "x", "t.csv, line 3")]
    dataset = SampleSource(rows, max_pixels=LIMIT)
    assert len(dataset) == 2
    sample = dataset[0]
    np.testing.assert_array_equal(sample.pop("image"), picture)
    assert sample == {"label": 1, "has_text": False, "text": ""}
    with pytest.raises(UserError, match=r"none\.png"):
        dataset[1]
    texts = SampleSource(rows, max_pixels=LIMIT, with_images=False)
    assert texts[1] == {"label": 0, "has_text": True, "text": "x"}
    bare = SampleSource(rows, max_pixels=LIMIT, with_images=False, with_texts=False)
    assert bare[1] == {"label": 0, "has_text": True}
