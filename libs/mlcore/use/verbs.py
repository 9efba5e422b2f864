"""The command lines of `quartet evaluate`, `quartet card` and `quartet push`, the same for the runs of every app."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.base.env import load_env
from mlcore.base.errors import UserError
from mlcore.base.files import write_text
from mlcore.use.command import plain_parser

if TYPE_CHECKING:
    from mlcore.cli.app import App

__all__ = ["card", "card_parser", "evaluate", "evaluate_parser", "evaluate_script", "push", "push_parser"]

CARD = "README.md"
"""Name of a model card, as the hub looks for it."""

_EVALUATE = """\
Evaluate a run once more, as it was at the end of its training, on its own held-out data or on other data.

    quartet evaluate RUN
    quartet evaluate RUN --data other.csv
    quartet evaluate RUN --operating_point precision=0.95 --split test

The folder of the results gets metrics.json, report.html, the table of all predictions, and decision.json. Without
--operating_point the decision is the run's; with it, validation data chooses another one, and test data shows once what
it gives. The run itself stays as it is. Settings of the run's sections data and run can follow, such as
data.data_dir=DIR where the data has moved.
"""
_CARD = """\
Write the model card of a finished run: what it is, data, results with intervals, operating point, limits, how to load.

    quartet card RUN
    quartet card RUN --output README.md

Markdown below a header of metadata, as the Hugging Face hub reads it. Figures are those that the run keeps.
"""
_PUSH = """\
Put a run on the Hugging Face hub: its export, proved as by `quartet export`, and its card as README.md.

    HF_TOKEN=... quartet push RUN hub:TEAM/NAME --private

The token comes from the environment variable HF_TOKEN alone; HF_ENDPOINT names another hub. Afterwards
`quartet predict hub:TEAM/NAME FILE` and `load_run("hub:TEAM/NAME")` take the model from there.
"""
_RUN = "a run's folder, a checkpoint, or s3://bucket/key"


def evaluate_parser(prog: str = "quartet evaluate") -> argparse.ArgumentParser:
    """The parser of `quartet evaluate`, which knows no app."""
    parser = plain_parser(_EVALUATE, prog)
    parser.add_argument("run", metavar="RUN", help=_RUN)
    add = parser.add_argument
    add("--data", type=Path, metavar="DATA", help="a table, file or folder as the app's training takes it, with labels")
    split = "val: what the run held out, test; of other data test (default: val; with --data test)"
    add("--split", choices=["val", "test"], help=split)
    point = (
        "choose on validation: f1, precision=0.95, recall=0.9, fpr=0.01, zones=0.95,0.99, class_precision=0.95; score"
    )
    add("--operating_point", metavar="KIND=VALUE", help=f"{point} (masks)")
    add(
        "--output", type=Path, metavar="DIR", help="folder of the results (default: evaluation_<split or data>/ in RUN)"
    )
    _add_flags(parser)
    add("--num_workers", type=int, help="processes that read ahead (default: as in the run)")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N (default: auto)")
    return parser


def evaluate(arguments: Sequence[str], *, prog: str = "quartet evaluate") -> int:
    """Parse the command line of `quartet evaluate` and do it; returns 0.

    Raises:
        UserError: The run, its data or a setting cannot be used.
    """
    given, settings = evaluate_parser(prog).parse_known_args(arguments)
    own = [f"device={given.device}", *([] if given.num_workers is None else [f"num_workers={given.num_workers}"])]
    return _evaluate(
        run=given.run,
        data=given.data,
        split=given.split,
        point=given.operating_point,
        output=given.output,
        batch_size=given.batch_size,
        settings=[*own, *settings],
    )


def evaluate_script(
    app: "App[Any]", description: str, *, flags: Mapping[str, Mapping[str, Any]], called: str = "evaluation_"
) -> int:
    """What the scripts of an app that evaluate do: the same, with the names that their flags always had.

    Args:
        app: It.
        description: What `--help` begins with.
        flags: Keyword arguments of `add_argument` by name, of flags beyond --model_path, --output_dir and --batch_size;
            "csv" is --data, "split" is --split, "threshold" that of `mlcore.run.evaluating.Asked`; other flags that are
            given are settings of that name.
        called: What the name of the results' folder begins with.
    """
    parser = plain_parser(
        f"{description}\nSettings of the run's sections data and run can follow, such as data_dir=DIR.", None
    )
    parser.add_argument("--model_path", required=True, help=_RUN)
    parser.add_argument("--output_dir", type=Path, help=f"folder of the results (default: {called}*/ in the run's)")
    _add_flags(parser)
    for name, about in flags.items():
        parser.add_argument(f"--{name}", **about)
    given, settings = parser.parse_known_args()
    chosen = {name: value for name in flags if (value := getattr(given, name)) not in (None, False, True)}
    data, split, threshold = (chosen.pop(name, None) for name in ("csv", "split", "threshold"))
    return _evaluate(
        app,
        run=given.model_path,
        data=data,
        split=split,
        output=given.output_dir,
        batch_size=given.batch_size,
        settings=[*(f"{name}={value}" for name, value in chosen.items()), *settings],
        threshold=threshold or "",
        called=called,
    )


def card_parser(prog: str = "quartet card") -> argparse.ArgumentParser:
    """The parser of `quartet card`, which knows no app."""
    parser = plain_parser(_CARD, prog)
    parser.add_argument("run", metavar="RUN", help=_RUN)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where it goes (default: README.md in RUN)")
    return parser


def card(arguments: Sequence[str], *, prog: str = "quartet card") -> int:
    """Parse the command line of `quartet card` and do it; returns 0.

    Raises:
        UserError: There is no such run, it is not finished, or the file cannot be written.
    """
    given = card_parser(prog).parse_args(arguments)
    load_env()

    from mlcore.run.card import card as card_of  # after parsing: torch takes seconds to import
    from mlcore.run.restore import run_folder

    text, place = card_of(given.run)
    output = given.output or run_folder(place) / CARD
    write_text(output, text)
    print(f"written: {output}")
    return 0


def push_parser(prog: str = "quartet push") -> argparse.ArgumentParser:
    """The parser of `quartet push`, which knows no app."""
    parser = plain_parser(_PUSH, prog)
    parser.add_argument("run", metavar="RUN", help=_RUN)
    parser.add_argument("name", metavar="hub:NAME", help="the repository, such as hub:team/model")
    parser.add_argument("--private", action="store_true", help="make a new repository a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch that it goes to (default: main)")
    forms = "besides the weights, pt2: a torch.export program; onnx: for ONNX Runtime; several times (default: none)"
    parser.add_argument("--format", action="append", default=[], choices=["safetensors", "pt2", "onnx"], help=forms)
    return parser


def push(arguments: Sequence[str], *, prog: str = "quartet push") -> int:
    """Parse the command line of `quartet push` and do it; returns 0.

    Raises:
        UserError: The run cannot be used or exported, or the hub refuses it.
    """
    given = push_parser(prog).parse_args(arguments)
    load_env()
    if not given.name.startswith("hub:"):
        raise UserError(f"{given.name}: expected a name on the hub, such as hub:team/model")

    from mlcore.base.console import setup_logging  # after parsing: torch takes seconds to import
    from mlcore.remote.hub import publish, writer
    from mlcore.run.card import card as card_of
    from mlcore.run.predictor import load_run
    from mlcore.use.exporting import export

    setup_logging()
    api = writer(given.name)  # a missing token is told before minutes of work
    text, _ = card_of(given.run, called=given.name)
    with tempfile.TemporaryDirectory(prefix="push_") as scratch:
        folder = Path(scratch) / "export"
        export(load_run(given.run, device="cpu"), folder, [name for name in given.format if name != "safetensors"])
        write_text(folder / CARD, text)
        address = publish(
            folder, given.name, api=api, private=given.private, revision=given.revision, title="A model of quartet"
        )
    print(f"published: {address}")
    return 0


def _evaluate(app: "App[Any] | None" = None, **asked: Any) -> int:
    load_env()

    from mlcore.base.signals import deferred, interruptible  # after parsing: torch takes seconds to import
    from mlcore.run.evaluating import Request
    from mlcore.run.evaluating import evaluate as run_evaluation

    with deferred(), interruptible():
        run_evaluation(Request(**asked), app=app)
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch_size", type=int, help="samples that go through the network together (default: as in the run)"
    )
