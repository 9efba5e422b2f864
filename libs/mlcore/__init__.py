"""Exact, resumable training of torch models: what a program that uses mlcore as a library begins with.

    from mlcore import Engine, Limits, Trainer, build_optimizer

An app describes itself and is trained from the command line: `App`, `train`, and what its build function returns,
`TrainingSetup` with `Data`; `RunGroup` for runs made of runs.

A program with a loop of its own puts the parts together: a `Task` whose steps return `StepOutput`; `EpochOrder` and
`BatchLoader` for its batches; `parameter_groups`, `build_optimizer`, `lr_table` and `Engine` for the steps;
`Evaluator`, `CheckpointStore`, `Limits`, `Cadence` and `Monitor` for the `Trainer`. `seed_everything` comes first,
`start_world` joins the processes that torchrun started (each is a `World`), `load_checkpoint` reads what was saved
without running it, and `UserError` is what is raised for mistakes of the user.

Each name is imported when it is first used, so that `import mlcore` loads neither torch nor anything else. Everything
else is imported from the module that defines it.
"""

import importlib

# Where each public name is defined, below this package; `__init__.pyi` says the same to type checkers.
_HOMES = {
    "App": "cli.app",
    "BatchLoader": "data.loader",
    "Cadence": "training.progress",
    "CheckpointStore": "training.checkpoint",
    "Data": "run.build",
    "Engine": "training.engine",
    "EpochOrder": "data.order",
    "Evaluator": "training.evaluator",
    "Limits": "training.progress",
    "Monitor": "training.progress",
    "RunGroup": "run.group",
    "StepOutput": "training.engine",
    "Task": "training.task",
    "Trainer": "training.trainer",
    "TrainingSetup": "run.build",
    "UserError": "base.errors",
    "World": "base.distributed",
    "build_optimizer": "training.optim",
    "load_checkpoint": "training.checkpoint",
    "lr_table": "training.schedules",
    "parameter_groups": "training.optim",
    "seed_everything": "base.seeding",
    "start_world": "base.distributed",
    "train": "run.app",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
