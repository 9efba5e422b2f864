"""What type checkers see of the public names, which `__init__.py` imports when they are used."""

from mlcore.base.distributed import World, start_world
from mlcore.base.errors import UserError
from mlcore.base.seeding import seed_everything
from mlcore.cli.app import App
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.run.app import train
from mlcore.run.build import Data, TrainingSetup
from mlcore.run.group import RunGroup
from mlcore.training.checkpoint import CheckpointStore, load_checkpoint
from mlcore.training.engine import Engine, StepOutput
from mlcore.training.evaluator import Evaluator
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.progress import Cadence, Limits, Monitor
from mlcore.training.schedules import lr_table
from mlcore.training.task import Task
from mlcore.training.trainer import Trainer

__all__ = [
    "App",
    "BatchLoader",
    "Cadence",
    "CheckpointStore",
    "Data",
    "Engine",
    "EpochOrder",
    "Evaluator",
    "Limits",
    "Monitor",
    "RunGroup",
    "StepOutput",
    "Task",
    "Trainer",
    "TrainingSetup",
    "UserError",
    "World",
    "build_optimizer",
    "load_checkpoint",
    "lr_table",
    "parameter_groups",
    "seed_everything",
    "start_world",
    "train",
]
