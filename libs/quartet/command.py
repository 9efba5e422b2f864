"""The command `quartet`.

    quartet train APP [--flag VALUE] [key=value] ...   train an app; without a data set, its demo
    quartet train APP --help                           what can be set
    quartet predict RUN INPUT ...                      a run's model on files, folders, or the rows of a table
    quartet evaluate RUN [--data DATA]                 a run's figures again, on other data, or at another decision
    quartet export RUN [--format onnx]                 a run's model as files that work elsewhere
    quartet distill RUN [--flag VALUE] ...             train one network on the answers of a run or an ensemble
    quartet card RUN                                   a run's model card: data, results, decision, limits
    quartet push RUN hub:NAME                          a run's export and card on the Hugging Face hub
    quartet serve RUN [--port 8000]                    a page to try a run's model, and a JSON endpoint
    quartet run APP SCRIPT [...]                       another script of an app, such as predict or export
    quartet doctor [APP]                               check this machine (and libraries and settings of an app)
    quartet chaos APP [--kills N] [--faults NAME ...]  kill and damage runs of an app, and compare what they end with
    quartet compare RUN RUN ... [--metric val/auroc]   runs side by side
    quartet new-app NAME                               write a small, complete app into a checkout
    quartet --version

`train` takes exactly what the apps' train.py take. Several processes: torchrun --nproc-per-node 4 -m quartet train APP.
"""

import importlib
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mlcore.base.signals import listen
from mlcore.cli.apps import app_names, load_app

if TYPE_CHECKING:
    from mlcore.run.doctor import Check

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Do what the command line says and exit: 0 done, 2 a mistake of the user's, else as the script called.

    Args:
        argv: Arguments; the process's own by default.
    """
    command, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if command in ("train", "predict", "distill", "serve"):
        listen()  # before what takes long to import
    try:
        if command in ("-h", "--help", "help") or (
            rest[:1] in (["-h"], ["--help"])
            and command not in ("compare", "predict", "evaluate", "export", "serve", "card", "push")
        ):
            print(f"{(__doc__ or '').strip()}\n\nApps: {', '.join(app_names())}")
            sys.exit(0)
        from mlcore.cli.main import guarded

        guarded(lambda: _run(command, rest))
    except BrokenPipeError:  # whoever read what is printed has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("mlcore", "quartet"):
            raise
        app = next((word for word in rest if word in app_names()), "all")
        print(
            f"error: the package {error.name.partition('.')[0]}, which this needs, is not installed; "
            f'make brings it in a checkout, elsewhere: pip install "quartet-train[{app}]"',
            file=sys.stderr,
        )
        sys.exit(2)


def _run(command: str, rest: list[str]) -> int:
    from mlcore.base.errors import UserError, nearest
    from mlcore.base.version import VERSION

    if command == "--version":
        print(f"quartet {VERSION}")
        return 0
    known: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "predict": _predict,
        "export": _export,
        "distill": _distill,
        **{name: partial(_verb, name) for name in ("evaluate", "card", "push")},
        "serve": _serve,
        "run": _script,
        "doctor": _doctor,
        "chaos": _chaos,
        "compare": _compare,
        "new-app": _new_app,
    }
    if command not in known:
        raise UserError(f"no command '{command}'{nearest(command, known)}; quartet --help lists all")
    return known[command](rest)


def _named(rest: list[str], usage: str) -> str:
    """The app that the first argument names."""
    from mlcore.base.errors import UserError

    if not rest or rest[0].startswith("-"):
        raise UserError(f"say which app: quartet {usage}; there is: {', '.join(app_names())}")
    return load_app(rest[0]).name


def _train(rest: list[str]) -> NoReturn:
    from mlcore.chaos.inside import observed
    from mlcore.run.app import train

    name = _named(rest, "train APP ...")
    sys.argv = [f"quartet train {name}", *rest[1:]]  # for usage lines and the run's own record
    train(observed(load_app(name)), rest[1:])


def _predict(rest: list[str]) -> int:
    from mlcore.use.command import predict

    return predict(rest)


def _verb(name: str, rest: list[str]) -> int:
    from mlcore.use import verbs

    done: int = getattr(verbs, name)(rest)
    return done


def _export(rest: list[str]) -> int:
    from mlcore.use.command import export

    return export(rest)


def _distill(rest: list[str]) -> int:
    """The script of the one app that has it."""
    folders = {name: Path(importlib.import_module(f"quartet.apps.{name}").__path__[0]) for name in app_names()}
    app = next(name for name, folder in folders.items() if (folder / "distill.py").is_file())
    return _script([app, "distill", *rest])


def _serve(rest: list[str]) -> int:
    from mlcore.use.command import serve

    return serve(rest)


def _script(rest: list[str]) -> int:
    from mlcore.base.errors import UserError, nearest

    name = _named(rest, "run APP SCRIPT ...")
    package = importlib.import_module(f"quartet.apps.{name}")
    folder = Path(package.__path__[0])
    scripts = sorted(path.stem for path in folder.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
    if len(rest) < 2:
        raise UserError(f"say which script of {name}: {', '.join(scripts)}")
    script = rest[1].removesuffix(".py")
    if script not in scripts:
        raise UserError(f"no script '{script}' of {name}{nearest(script, scripts)}; there is: {', '.join(scripts)}")
    sys.argv = [str(folder / f"{script}.py"), *rest[2:]]
    runpy.run_module(f"quartet.apps.{name}.{script}", run_name="__main__", alter_sys=False)
    return 0


def _doctor(rest: list[str]) -> int:
    from mlcore.run.doctor import check_system, exit_code, format_checks

    apps = [_named(rest, "doctor [APP]")] if rest else []
    checks = check_system(Path("outputs"), upload_to=os.environ.get("S3_BUCKET_NAME") or None)
    checks += [check for name in apps for check in _check_app(name)]
    print(format_checks(checks))
    return exit_code(checks)


def _check_app(name: str) -> "list[Check]":
    """Whether an app's libraries are installed and its settings can be read."""
    from mlcore.base.errors import UserError
    from mlcore.run.doctor import Check

    try:
        importlib.import_module(f"quartet.apps.{name}.build")
        checks = [Check("Libraries", "ok", f"those of {name} are installed")]
    except ModuleNotFoundError as error:
        advice = f'pip install "quartet-train[{name}]"; in a checkout: make train APP={name}'
        checks = [Check("Libraries", "fail", f"{name} needs {error.name}", advice)]
    try:
        return [*checks, Check("Settings", "ok", f"{name}: {len(load_app(name).defaults())}, as default.yaml has them")]
    except UserError as error:
        return [*checks, Check("Settings", "fail", str(error), "Put the file back as it was.")]


def _chaos(rest: list[str]) -> int:
    from mlcore.chaos.command import chaos

    name = _named(rest, "chaos APP [--kills N]")
    command = ["-m", "quartet", "train", name]
    return chaos(rest[1:], app=load_app(name), command=command, prog=f"quartet chaos {name}")


def _compare(rest: list[str]) -> int:
    from mlcore.compare.command import compare

    return compare(rest, prog="quartet compare")


def _new_app(rest: list[str]) -> int:
    from mlcore.base.errors import UserError
    from quartet.new_app import write_app

    if len(rest) != 1 or rest[0].startswith("-"):
        raise UserError("say how the app is to be called, one name: quartet new-app NAME, or make new-app NAME=...")
    written = write_app(rest[0], Path.cwd())
    print("\n".join([*(str(path) for path in written), "", f"Try it: make train APP={rest[0]}"]))
    return 0
