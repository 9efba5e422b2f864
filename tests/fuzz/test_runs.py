"""What runs leave and others read again: records, figures, summaries; and what reports make of any name."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mlcore.base.files import write_json
from mlcore.compare.comparison import _csv, _main_table, _metric_table, compare_runs, write_comparison
from mlcore.config.section import Section, field
from mlcore.data.generated import write_once
from mlcore.report.page import Headline, Picture, RunReport, Table, Text, write_report
from mlcore.report.tile import Tile
from mlcore.run.decision import choose, parse_operating_point, read_decision, write_decision
from mlcore.run.final_evaluation import read_results
from mlcore.run.folder import choose_run_folder, finished_run
from mlcore.trackers.table import TableTracker, read_history
from quartet.apps.doc_ensemble.ensemble.folds import _progress
from quartet.apps.doc_ensemble.ensemble.stacking import Stacker, read_stacker
from quartet.apps.multimodal_ads.data.ocr import _recorded
from quartet.apps.multimodal_ads.restore import decision_of
from tests.fuzz.cases import Parser, Record, checks_of, explore, judge

JSON = (b"{}", b"[]", b'"x": ', b"Infinity", b"NaN", b"true", b"1e400", b'{"a": [1]}', b"\\u0000", b"\\ud800", b"-1")
SUMMARY = {
    "status": "finished",
    "monitor": {"metric": "auroc", "mode": "max", "best": 0.5},
    "results_of_best_checkpoint": {"val": {"auroc": 0.5, "n": 4.0, "f1": None}, "test": {"auroc": 0.25}},
    "progress": {"step": 50, "seconds": 61.4},
}
RESULTS = {"val": {"auroc_interval": {"low": 0.1, "high": 0.9}}, "threshold": {"value": 0.5, "chosen_on": "val"}}
JSON_FOUND = {
    "half": b'{"status": "fin',
    "list": b"[]",
    "deep": b"[" * 9000,
    "digits": b'{"step": ' + b"9" * 5000 + b"}",
}
ROWS = "".join(json.dumps({"step": step, "perf/memory_gib": 0.5, "train/loss": step / 7}) + "\n" for step in range(3))
JOBS = [{"overrides": ["train.lr=9"], "folder": "x", "status": "failed", "exit_code": 2, "seconds": 1.0}]


class Config(Section):
    """Settings of a run."""

    lr: float = field(0.1, "Rate")


def runs(folder: Path) -> None:
    """Two runs and a sweep, as they leave them."""
    for name in "ab":
        run = folder / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "latest_model.pth").touch()
        write_json(
            run / "run.json",
            {"status": "finished", "config": {"lr": 0.1, "data": {"x": [1, name]}, "run": {"seed": 3}}},
        )
        write_json(run / "summary.json", SUMMARY)
        write_json(run / "results.json", RESULTS)
        (run / "metrics.jsonl").write_text(ROWS)
    write_json(folder / "sweep.json", {"digest": "0", "jobs": JOBS})


def compared(folder: Path) -> object:
    comparison = compare_runs([folder], metric="auroc")
    return _main_table(comparison), _metric_table(comparison), _csv(comparison)


def continued(folder: Path) -> object:
    return choose_run_folder(folder, config=Config()), finished_run(folder / "a", Config())


def summed_up(folder: Path) -> object:
    return read_results(folder / "a"), _progress([folder / "a", folder / "b"])


def stacker(folder: Path) -> None:
    one = np.eye(2)
    Stacker(
        coefficients=np.tile(one, 2),
        intercept=one[0],
        sharpness=1.0,
        class_names=("a", "b"),
        member_names=("x", "y"),
        strength=math.inf,
    ).save(folder / "stacking.json")


def decision(folder: Path) -> None:
    (folder / "a").mkdir()
    asked = parse_operating_point("class_precision=0.9")
    chances = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]
    names, kind = ("a", "b", "c"), "multiclass"
    write_decision(
        folder / "a",
        choose(asked, labels=[0, 1, 1], probabilities=chances, class_names=names, kind=kind, temperature=1.3),
    )


PARSERS = [
    Parser(name="metrics.jsonl", write=runs, read=lambda folder: read_history(folder / "a"), edited="a/metrics.jsonl"),
    Parser(
        name="metrics.jsonl, to go on with",
        write=runs,
        read=lambda f: TableTracker(f / "a", resume_step=1).close(status=""),
        edited="a/metrics.jsonl",
        writes=True,
    ),
    Parser(name="run folders compared", write=runs, read=compared, edited="*.json*", found=JSON_FOUND),
    Parser(name="run folders to go on with", write=runs, read=continued, edited="run.json"),
    Parser(name="summary.json", write=runs, read=summed_up, edited="a/summary.json", found=JSON_FOUND),
    Parser(
        name="threshold",
        write=runs,
        read=lambda folder: decision_of(folder / "a" / "best.ckpt"),
        edited="a/results.json",
    ),
    Parser(
        name="decision",
        write=decision,
        read=lambda folder: read_decision(folder / "a"),
        edited="a/decision.json",
        found=JSON_FOUND,
    ),
    Parser(
        name="stacking model",
        write=stacker,
        read=lambda folder: read_stacker(folder / "stacking.json"),
        found=JSON_FOUND,
    ),
    Parser(
        name="generated data's stamp",
        write=lambda folder: write_once(folder / "set", {"size": 3}, lambda made: None),
        read=lambda folder: write_once(folder / "set", {"size": 4}, lambda made: None),
        writes=True,
    ),
    Parser(
        name="texts found before",
        write=lambda folder: (folder / "texts.jsonl").write_text(
            '{"image": "a", "languages": "kor", "text": "x"}\n' * 2
        ),
        read=lambda folder: _recorded(folder / "texts.jsonl", "kor"),
        writes=True,
    ),
]
for parser in PARSERS:
    parser.__dict__.update(words=(*JSON, *parser.words))

test_a_damaged_file_is_a_value_or_one_error, test_inputs_that_went_wrong_once = checks_of(PARSERS)


class _Tags(HTMLParser):
    """The tags of a page with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[object] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)

    handle_comment = handle_decl = handle_pi = unknown_decl = lambda self, data: self.found.append(data)


def told(folder: Path, name: str) -> tuple[list[object], int]:
    """Tags of the page and lines of the summary of a report in which every text is `name`."""
    report = RunReport(
        title=name,
        subtitle=name,
        headlines=[Headline(name, name, name)],
        warnings=[name],
        places=[(name, name)],
        sections=[
            Table(name, [name, "n"], [[name, 1], [name, None]], note=name),
            Picture(name, folder / "none.png", note=name),
            Picture(name, folder / "none.png", tiles=[Tile(image=None, caption=name, text=name)]),
            Text(name, name),
        ],
        changed=[(name, name, name, name)],
        config={"data": {"name": name}},
        environment={name: name},
    )
    page = write_report(folder, report=report).read_text(encoding="utf-8")
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    wild = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page + summary)
    assert not wild, f"control characters {wild}"

    return _Tags(page).found, len(summary.split("## Settings")[0].splitlines())


def test_no_name_changes_what_a_report_is(tmp_path: Path, record_property: Record) -> None:
    whole = told(tmp_path, "x")

    def check(name: str) -> str:
        outcome = judge(lambda: found.append(told(tmp_path, name)), names=[], writes=True)
        assert found.pop() == whole
        return outcome

    found: list[Any] = []
    part = st.sampled_from(
        [
            "<script>",
            "</style>",
            "<!--",
            "-->",
            "]]>",
            "&lt;",
            "'\"",
            "{{ 7 }}",
            "\x1b[2J",
            "\n",
            "|",
            "`",
            "\udcff",
            "&#0;",
        ]
    )
    explore(
        st.lists(part | st.text(max_size=6), max_size=5).map(lambda parts: "x" + "x".join(parts)),
        check,
        record=record_property,
    )


def test_runs_in_folders_whose_names_are_no_text_are_compared(tmp_path: Path) -> None:
    runs(tmp_path / "all")
    (tmp_path / "all" / "a").rename(tmp_path / "all" / "a\udcff\x1b")
    write_comparison(compare_runs([tmp_path / "all"], metric="auroc"), tmp_path / "out")
    assert "a\\udcff" in (tmp_path / "out" / "comparison.csv").read_text(encoding="utf-8")
