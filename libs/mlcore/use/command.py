"""The command lines of `quartet predict`, `export` and `serve`, the same for the models of every app."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.base.env import load_env
from mlcore.base.errors import UserError

if TYPE_CHECKING:
    from mlcore.cli.app import App
    from mlcore.use.job import Done

__all__ = [
    "export",
    "export_parser",
    "export_script",
    "plain_parser",
    "predict",
    "predict_parser",
    "predict_script",
    "serve",
    "serve_parser",
]

_log = logging.getLogger(__name__)

_STRICT = "; without --strict such an input is a row with the reason, and the others go on"

_HALF = "keep weights as float16, in files of half the size; the difference is measured and told"

_VERIFY = "only compare an export that is there with the run"

_PREDICT = """\
Predict with a trained model: a table with a row for each input, in the order given.

    quartet predict RUN picture.jpg scans/ bundle.pdf
    quartet predict RUN table.csv --output answers.parquet
    quartet predict RUN RUN RUN bundle.pdf

RUN is a run's folder (its best checkpoint is taken), a checkpoint, or s3://bucket/key of one; of several, all before
the inputs, the predictions are averaged. Inputs are files, folders of them, or one table (.csv, .jsonl, .parquet) that
names them; its columns are passed through. Equal inputs are predicted once. An input that cannot be used is a row with
the reason in the column `problem`; the exit code is then 1, or 2 where none is left. A job that was killed goes on
where it was when the same command is given again. With several processes:

    torchrun --nproc-per-node 4 -m quartet predict RUN INPUT ...
"""


_EXPORT = """\
Write a trained model as files that work elsewhere, and prove that they give the run's numbers.

    quartet export RUN
    quartet export RUN --format onnx --output model/

The folder holds model.safetensors (the weights), model.json (what the model is, its preprocessing, classes, and the
digest of every file), the whole network in the formats asked for, with free batch size, and predict.py, which reads
them without this repository. A process of its own compares every form with the run before anything is there.
`quartet predict` takes such a folder like a run.
"""

_SERVE = """\
Try a trained model: a page for one file at a time, and a JSON endpoint.

    quartet serve RUN
    quartet serve RUN RUN --port 8080

RUN is what `quartet predict` takes; of several the predictions are averaged. The page is for this machine alone unless
--host says otherwise; it loads nothing from elsewhere, and keeps nothing of what it was given. Other programs ask so:

    curl -F file=@picture.jpg http://127.0.0.1:8000/api/predict

Ctrl-C stops it.
"""


def predict_parser(prog: str = "quartet predict") -> argparse.ArgumentParser:
    """The parser of `quartet predict`, which knows no app."""
    parser = plain_parser(_PREDICT, prog)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint, or s3://bucket/key")
    inputs = "files, folders, s3://bucket/key, or one table; before these, further runs"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    _add_model_flags(parser)
    _add_flags(parser)
    return parser


def predict(arguments: Sequence[str], *, prog: str = "quartet predict") -> int:
    """Parse the command line of `quartet predict` and do it; as `_predict`."""
    given = predict_parser(prog).parse_args(arguments)
    from mlcore.run.averaged import is_run  # after parsing: torch takes seconds to import

    further = list(takewhile(is_run, given.inputs))
    given.run, given.inputs = [given.run, *further], given.inputs[len(further) :]
    return _predict(given, _options(given.set))


def predict_script(
    app: "App[Any]",
    description: str,
    *,
    on_bad: str = "",
    output_dir: Path | None = None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """What an app's `predict.py` does: the same, with the names that its flags always had; as `_predict`.

    Args:
        app: It; each of its options is a flag.
        description: What `--help` begins with.
        on_bad: Name of its flag for what to do with an input that cannot be used; "error" is `--strict`.
        output_dir: Default of its flag for the folder that the table and the files go to; None: there is no such flag.
        flags: How options are given, where that is not as one text: keyword arguments of `add_argument` by name.
    """
    parser = plain_parser(description, None)
    parser.add_argument(
        "--model_path",
        dest="run",
        action="append",
        required=True,
        help="a run's folder, a checkpoint, or s3://bucket/key; given several times, runs are averaged",
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="files, folders, or one table")
    parser.add_argument("--csv", help="a table, instead of inputs")
    for name, help_text in app.options.items():
        parser.add_argument(f"--{name}", help=help_text, **(flags or {}).get(name, {}))
    _add_flags(parser)
    if on_bad:
        parser.add_argument(f"--{on_bad}", choices=("error", "skip"), help="error: the same as --strict")
    if output_dir is not None:
        folder = f"folder that the table and the files go to, unless said otherwise (default: {output_dir})"
        parser.add_argument("--output_dir", type=Path, default=output_dir, help=folder)
    given = parser.parse_args()
    if output_dir is not None:
        given.output, given.files = given.output_dir / given.output, given.output_dir / (given.files or "")
    given.strict |= getattr(given, on_bad, None) == "error"
    given.overwrite, given.network, given.inputs = True, None, [*given.inputs, *filter(None, [given.csv])]
    chosen = {name: getattr(given, name) for name in app.options}
    options = {name: _as_text(value) for name, value in chosen.items() if value not in (None, False)}
    return _predict(given, options, app=app)


def export_parser(prog: str = "quartet export") -> argparse.ArgumentParser:
    """The parser of `quartet export`, which knows no app."""
    parser = plain_parser(_EXPORT, prog)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint, or s3://bucket/key")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the folder (default: export/ in the run's folder)")
    forms = "pt2: a torch.export program; onnx: for ONNX Runtime; several times (default: both, where possible)"
    forms += "; monai, alone: a bundle, of apps that have one"
    parser.add_argument("--format", action="append", choices=["safetensors", "pt2", "onnx", "monai"], help=forms)
    parser.add_argument("--half", action="store_true", help=_HALF)
    parser.add_argument("--verify", action="store_true", help=_VERIFY)
    return parser


def export(arguments: Sequence[str], *, prog: str = "quartet export") -> int:
    """Parse the command line of `quartet export` and do it; returns 0.

    Raises:
        UserError: The run cannot be used, or its model not be written in a format.
    """
    given = export_parser(prog).parse_args(arguments)
    load_env()

    from mlcore.base.console import setup_logging  # after parsing: torch takes seconds to import
    from mlcore.run.networks import FORMATS
    from mlcore.run.predictor import load_run
    from mlcore.run.restore import run_folder
    from mlcore.use.exporting import bundle, prove
    from mlcore.use.exporting import export as write

    setup_logging()
    predictor = load_run(given.run, device="cpu")
    formats = [name for name in given.format or ("pt2", "onnx") if name != "safetensors"]
    if "monai" in formats:
        if given.format != ["monai"] or given.verify or given.half:
            raise UserError("--format monai writes a folder of another kind; give it alone")
        bundle(predictor, given.output or run_folder(predictor.source) / "monai")
        return 0
    folder: Path = given.output or run_folder(predictor.source) / "export"
    if given.verify:
        prove(predictor, folder, [name for name in formats if (folder / FORMATS[name]).is_file()])
    else:
        write(predictor, folder, formats, asked=given.format is not None, half=given.half)
    return 0


def serve_parser(prog: str = "quartet serve") -> argparse.ArgumentParser:
    """The parser of `quartet serve`, which knows no app."""
    parser = plain_parser(_SERVE, prog)
    add = parser.add_argument
    add(
        "run", nargs="+", metavar="RUN", help="a run's folder, a checkpoint, an export, an ensemble, or s3://bucket/key"
    )
    host = "address to listen at; another one than the default lets others use it, who need no password"
    add("--host", default="127.0.0.1", help=f"{host} (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    add("--max_upload_mib", type=int, default=256, help="largest request, MiB (default: 256)")
    add("--max_waiting", type=int, default=4, help="requests that wait while one is answered (default: 4)")
    add("--max_seconds", type=float, default=300, help="for an upload, and for its answer, s (default: 300)")
    _add_model_flags(parser)
    _add_device(parser)
    return parser


def serve(arguments: Sequence[str], *, prog: str = "quartet serve") -> int:
    """Parse the command line of `quartet serve` and serve until a signal comes; returns 0.

    Raises:
        UserError: A run or an option cannot be used, or nobody can listen at the address.
    """
    given = serve_parser(prog).parse_args(arguments)
    load_env()
    if given.max_upload_mib < 1 or given.max_waiting < 0 or not given.max_seconds > 0:
        raise UserError("--max_upload_mib must be at least 1, --max_waiting at least 0, --max_seconds more than 0")

    # After parsing: torch takes seconds to import.
    from mlcore.base.console import setup_logging
    from mlcore.base.signals import conclude
    from mlcore.run.averaged import load_runs
    from mlcore.use.serving import Limits, listening, run_server

    setup_logging()
    limits = Limits(upload=given.max_upload_mib * 2**20, waiting=given.max_waiting, seconds=given.max_seconds)
    with listening(given.host, given.port) as sock:
        predictor = load_runs(given.run, device=given.device, options=_options(given.set), network=given.network)
        conclude()  # the server answers signals itself, and to be stopped is no failure of its
        run_server(predictor, sock, limits, host=given.host)
    return 0


def export_script(description: str) -> int:
    """What an app's `export.py` does: the same, with the names that its flags always had."""
    parser = plain_parser(description, None)
    parser.add_argument("--model_path", required=True, help="a run's folder, a checkpoint, or s3://bucket/key")
    parser.add_argument("--output_dir", help="the folder (default: export/ in the run's folder)")
    parser.add_argument("--half", action="store_true", help=_HALF)
    parser.add_argument("--verify", action="store_true", help=_VERIFY)
    given = parser.parse_args()
    more = ["--output", given.output_dir] if given.output_dir else []
    more += [f"--{name}" for name in ("half", "verify") if getattr(given, name)]
    return export([given.model_path, *more])


def plain_parser(description: str, prog: str | None) -> argparse.ArgumentParser:
    """A parser without abbreviations, whose description is printed as it is written; `prog` None: the script."""
    return argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    output = "the table: .csv, .jsonl or .parquet (default: predictions.csv)"
    add("--output", type=Path, default=Path("predictions.csv"), help=output)
    add("--files", type=Path, metavar="DIR", help="folder for masks, pictures and the like (default: none are written)")
    add("--base_dir", type=Path, help="folder that a table's paths start at and stay in (default: the table's)")
    add("--strict", action="store_true", help="stop at the first input that cannot be used")
    add("--batch_size", type=int, help="inputs that go through the network together (default: the app's)")
    add("--num_workers", type=int, help="processes that read ahead (default: what the machine has left)")
    _add_device(parser)


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the app's own")
    network = "what computes the network of an export (default: torch with its weights; pt2 is code, see docs/USE.md)"
    parser.add_argument("--network", choices=["onnx", "pt2"], help=network)


def _add_device(parser: argparse.ArgumentParser) -> None:
    device = "auto (CUDA where there is one), cpu, cuda or cuda:N (default: auto)"
    parser.add_argument("--device", default="auto", help=device)


def _predict(given: argparse.Namespace, options: Mapping[str, str], *, app: "App[Any] | None" = None) -> int:
    """Predict what the command line says; `app`: the run has to be of it.

    Returns:
        0; 1 where some inputs could not be used.

    Raises:
        UserError: The run, an option or the output cannot be used, or none of the inputs can: then the table with the
            reasons is there.
    """
    load_env()
    if given.batch_size is not None and given.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {given.batch_size}")

    # After parsing: torch takes seconds to import.
    from mlcore.base.console import setup_logging
    from mlcore.base.distributed import start_world
    from mlcore.base.files import output_folder
    from mlcore.base.signals import deferred, interruptible
    from mlcore.run.averaged import load_runs
    from mlcore.use.inputs import find_inputs
    from mlcore.use.job import Job, run_job
    from mlcore.use.writing import check_table_name

    check_table_name(given.output)
    if given.output.exists() and not given.overwrite:
        raise UserError(f"{given.output}: is there already; give another --output, or --overwrite")
    with start_world(given.device) as world, ExitStack() as stack:
        setup_logging(is_main=world.is_main)
        predictor = load_runs(given.run, device=str(world.device), options=options, network=given.network)
        if app is not None and predictor.app.name != app.name:
            raise UserError(
                f"{given.run[0]}: a run of {predictor.app.name}, not of {app.name}; quartet predict takes any"
            )
        job = Job(
            predictor=predictor,
            inputs=find_inputs(given.inputs, predictor.scorer, base_dir=given.base_dir),
            output=given.output,
            files=given.files,
            batch_size=given.batch_size or predictor.scorer.batch_size,
            workers="auto" if given.num_workers is None else given.num_workers,
            strict=given.strict,
        )
        if world.is_main:
            for folder in {given.output.absolute().parent, *filter(None, [given.files])}:
                stack.enter_context(output_folder(folder))
        stack.enter_context(deferred())
        stack.enter_context(interruptible())
        try:
            done = run_job(job, world=world)
        except UserError as error:
            raise UserError(f"{error}{_STRICT if given.strict else ''}") from None
    return 0 if done is None else _told(done, given.output)


def _told(done: "Done", output: Path) -> int:
    """Say what came out; the exit code."""
    if done.problems == done.rows:
        raise UserError(f"nothing could be predicted, {output} has the reasons; the first: {done.first}")
    same = f", {done.predicted} of them different" if done.predicted < done.rows else ""
    _log.info("written: %s (%d inputs%s, %d could not be used)", output, done.rows, same, done.problems)
    return 1 if done.problems else 0


def _as_text(value: Any) -> str:
    """What a flag gives, as `--set` gives it."""
    if value is True:
        return "true"
    return value if isinstance(value, str) else " ".join(map(str, value))


def _options(given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE pairs by name."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected NAME=VALUE")
        found[name] = value
    return found
