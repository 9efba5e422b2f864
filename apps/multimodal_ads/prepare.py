"""Turn folders of pictures, or any table of pictures, into the tables that training reads.

    python apps/multimodal_ads/prepare.py --input pictures --output prepared --ocr
    python apps/multimodal_ads/prepare.py --input pages.csv --output prepared --image_column image --text_column text \
        --ad_labels advertisement

A folder holds the folders ad and not_ad with pictures in them or below; a table is a CSV file with a column of paths,
one of labels and perhaps one of texts. Writes train.csv, val.csv and test.csv with the columns local_image_path, label
and text_info; each has the same share of ads, and copies of a picture go to one of them. --ocr finds the texts of
pictures that have none with Tesseract (about a second a picture and core); stopped and started again, it goes on. With
--skip_unreadable, missing and repeated images, broken rows and unreadable images are listed in left_out.csv, and the
others are used.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded


def main() -> int:
    """Parse the command line and prepare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="PATH", help="folder with ad/ and not_ad/, or a CSV table")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where the tables go")
    add("--val_input", type=Path, metavar="PATH", help="pictures for validation (default: a part of --input)")
    add("--test_input", type=Path, metavar="PATH", help="pictures for the test (default: a part of --input)")
    add("--image_column", default="local_image_path", metavar="NAME", help="image paths (default: local_image_path)")
    add("--label_column", default="label", metavar="NAME", help="labels (default: label)")
    add("--text_column", default="text_info", metavar="NAME", help="texts, none for no column (default: text_info)")
    add("--encoding", default="utf-8", metavar="NAME", help="of tables, such as cp949 or utf-16 (default: utf-8)")
    add("--ad_labels", nargs="+", metavar="LABEL", help="labels that mean an ad (default: true, yes, 1)")
    add("--base_dir", type=Path, metavar="FOLDER", help="write paths relative to it (default: full paths)")
    add("--ocr", action="store_true", help="find the texts of pictures that have none, with Tesseract")
    add("--ocr_lang", default="kor+eng", metavar="CODES", help="their languages, joined by + (default: kor+eng)")
    add("--val_fraction", type=float, default=0.15, metavar="F", help="share for validation (default: 0.15)")
    add("--test_fraction", type=float, default=0.15, metavar="F", help="share for the test (default: 0.15)")
    add("--seed", type=int, default=0, help="names the draw of the split (default: 0)")
    add("--max_megapixels", type=float, default=100.0, metavar="N", help="refuse larger images (default: 100)")
    add("--skip_unreadable", action="store_true", help="leave out what cannot be used, and list it in left_out.csv")
    add(
        "--text_encoder", metavar="NAME", help="say what it would cut off of the texts: minilm, another preset, a model"
    )
    add("--max_length", type=int, metavar="N", help="tokens that it reads (default: its own limit)")
    given = vars(parser.parse_args())

    from quartet.apps.multimodal_ads.preparation import Preparation, Sources, run  # after parsing: --help comes at once

    sources = Sources(train=given.pop("input"), val=given.pop("val_input"), test=given.pop("test_input"))
    output = given.pop("output")
    given["ad_labels"] = tuple(given["ad_labels"]) if given["ad_labels"] else None
    given["text_column"] = None if given["text_column"] == "none" else given["text_column"]
    return run(sources, output, Preparation(**given))


if __name__ == "__main__":
    guarded(main)
