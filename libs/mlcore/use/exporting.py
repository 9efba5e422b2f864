"""Exports: a model's weights, or all of it as one file, in a folder that says what it is and was proved to be the same.

What is written computes in float32. After writing, a process of its own opens the folder as any user of it would and
compares every form with that; how far the run itself is from it, of whose arithmetic or for weights kept in half of the
bits, is measured, told and kept.
"""

import copy
import inspect
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call

from mlcore.base.env import child_environment
from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, ensure_folder, partial_folder, told_writing, write_json, write_text
from mlcore.base.version import VERSION
from mlcore.run.exported import ABOUT, LAYOUT, WEIGHTS, digest_of, read_about
from mlcore.run.networks import FORMATS, Eager, Network, Signature, open_network
from mlcore.run.predictor import Predictor, load_run
from mlcore.run.scorer import Bundling

__all__ = ["TOLERANCE", "bundle", "export", "prove", "verify"]

_log = logging.getLogger(__name__)

Cases = Sequence[Mapping[str, Mapping[str, Tensor]]]
"""Batches: "inputs" and the "outputs" that are expected, by name."""

TOLERANCE = 1e-5
"""Largest difference of an output of one form from another's, relative to the largest value."""

READER = "predict.py"
_BUNDLE = "configs/metadata.json"


def export(
    predictor: Predictor, folder: Path, formats: Sequence[str], *, asked: bool = True, half: bool = False
) -> None:
    """Write a run's model into a folder, which is there as a whole or not at all, and prove it.

    Args:
        predictor: The run's, on the CPU.
        folder: A former export in it is replaced.
        formats: Of "pt2" and "onnx", beside the weights.
        asked: Whether one that cannot be written is an error; otherwise it is left out, and why is said.
        half: Whether weights are kept as float16, in files of half the size.

    Raises:
        UserError: The model cannot be written in a format, and why; or what was written gives other numbers.
    """
    model = _Written.of(predictor, _exportable(predictor, folder, mark=ABOUT), half=half)
    with partial_folder(folder) as partial:
        _write_weights(model.kept, partial / WEIGHTS)
        written = _write_programs(predictor, model, partial, formats, asked=asked)
        for name, text in predictor.about.get("files", {}).items():
            write_text(partial / name, text)
        reader = predictor.app.source / "exported" / READER
        if reader.is_file() and "onnx" in written:
            shutil.copyfile(reader, partial / READER)
        _write_about(predictor, model, partial)
        _prove(model.cases, partial, written)
        _replace(folder, partial)


def bundle(predictor: Predictor, folder: Path) -> None:
    """Write a run's model as a MONAI bundle, and prove its program.

    Args:
        predictor: The run's, on the CPU.
        folder: A former bundle in it is replaced.

    Raises:
        UserError: The app's models are none that MONAI runs, or as `export`.
    """
    network = _exportable(predictor, folder, mark=_BUNDLE)
    use = predictor.app.use() if predictor.app.use is not None else None
    if not isinstance(use, Bundling):
        raise UserError(f"{predictor.source}: models of {predictor.app.name} cannot be written as a MONAI bundle")
    with partial_folder(folder) as partial:
        use.write_bundle(predictor.about, partial)
        path = ensure_folder(partial / "models") / FORMATS["pt2"]
        model = _Written.of(predictor, network, half=False)
        _write_program(_program(predictor, model), path)
        program = open_network(path, network.signature, device=torch.device("cpu"))
        _log.info("%s: largest difference from float32 %.1e (relative)", path.name, verify(program, model.cases))
        _replace(folder, partial)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What is written of a run.

    Attributes:
        kept: The network, whose state is what is kept.
        module: The same as a module that computes in float32.
        signature: Its inputs and outputs.
        cases: What every form of it has to give.
        difference: Of that from what the run gives, relative to the largest value.
        half: Whether weights are kept as float16.
    """

    kept: nn.Module
    module: nn.Module
    signature: Signature
    cases: Cases
    difference: float
    half: bool

    @staticmethod
    def of(predictor: Predictor, network: Eager, *, half: bool) -> "_Written":
        """That of a run's network; tells the difference where there is one."""
        module = kept = network.module
        if half:
            kept = _halved(network.module, predictor.source)
            module = _Widened(kept).eval()
        exact = Eager(module, network.signature, device=torch.device("cpu"), precision="fp32")
        inputs = [dict(case) for case in predictor.scorer.examples()]
        cases = [{"inputs": case, "outputs": exact(case)} for case in inputs]
        same = network.reduced is None and not half
        difference = _difference(network, cases, most=TOLERANCE if same else float("inf"))
        if not same:
            kept_as = " with float16 weights" if half else ""
            said = "float32%s: largest difference from the run %.1e (relative), which computes in %s"
            _log.info(said, kept_as, difference, network.arithmetic)
        return _Written(
            kept=kept, module=module, signature=network.signature, cases=cases, difference=difference, half=half
        )


class _Widened(nn.Module):
    """A network whose weights are kept as float16, computed with as float32."""

    def __init__(self, kept: nn.Module) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, *inputs: Tensor) -> Any:
        """What the network gives."""
        state = self.kept.state_dict(keep_vars=True)
        widened = {name: value.float() for name, value in state.items() if value.dtype is torch.float16}
        return functional_call(self.kept, widened, inputs)


def _halved(module: nn.Module, source: Path) -> nn.Module:
    """The network with its weights as float16; raises `UserError` where one of them has none."""
    halved = copy.deepcopy(module)
    for name, value in halved.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            value.data = value.data.half()
            if not value.isfinite().all():
                raise UserError(f"{source}: {name} has values above 65504, which is no float16; export without --half")
    return halved


class _NotWritableError(UserError):
    """A form that this network, or this environment, cannot be written in; a full disk is none."""


def _exportable(predictor: Predictor, folder: Path, *, mark: str) -> Eager:
    """The network of a run, if it can be written into a folder, which may hold something with `mark`."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: cannot be written, it is a file; give another --output")
    if folder.exists() and not (folder / mark).is_file() and any(folder.iterdir()):
        raise UserError(f"{folder}: is there and holds no export; give another --output")
    if predictor.app.use is None:
        raise UserError(f"{predictor.source}: models of {predictor.app.name} cannot be exported by this command")
    if not predictor.about:
        raise UserError(f"{predictor.source}: several networks, of an ensemble or of several runs; give one run")
    network = predictor.scorer.network
    if "weights" not in predictor.identity or not isinstance(network, Eager):
        raise UserError(f"{predictor.source}: is an export already; give the run")
    return network


def _replace(folder: Path, partial: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    _log.info("exported: %s (%s)", folder, ", ".join(sorted(path.name for path in folder.iterdir())))


def _write_weights(module: nn.Module, path: Path) -> None:
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    data = save(weights)
    with atomic_write(path, size=len(data)) as file:
        file.write(data)


def _program(predictor: Predictor, model: _Written) -> ExportedProgram:
    """The network as torch traces it, with the free axes of its signature."""
    example, signature = model.cases[0]["inputs"], model.signature
    free: dict[str, Any] = {}
    for axes in signature.inputs.values():
        for axis in axes:
            if isinstance(axis, str) and axis not in free:
                free[axis] = Dim(axis, max=signature.longest.get(axis))
    shapes = tuple(
        # An axis of one is traced as the constant that it is.
        {place: free[axis] for place, axis in enumerate(axes) if axis in free and example[name].shape[place] > 1}
        for name, axes in signature.inputs.items()
    )
    given = tuple(example[name] for name in signature.inputs)
    parameters = inspect.signature(model.module.forward).parameters.values()
    starred = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    with torch.no_grad(), _quietly(), _explained(predictor, "traced by torch.export"):
        return torch.export.export(model.module, given, dynamic_shapes=(shapes,) if starred else shapes)


def _write_programs(
    predictor: Predictor, model: _Written, folder: Path, formats: Sequence[str], *, asked: bool
) -> list[str]:
    """Write the whole network in the formats; those that could be written."""
    written = list[str]()
    try:
        program = _program(predictor, model) if formats else None
        if "pt2" in formats and program is not None:
            _write_program(program, folder / FORMATS["pt2"])
            written.append("pt2")
        if "onnx" in formats and program is not None:
            _write_onnx(program, model.signature, folder / FORMATS["onnx"])
            written.append("onnx")
    except _NotWritableError as error:
        if asked:
            raise UserError(f"{error}; --format safetensors writes the weights alone") from None
        _log.warning("not written: %s (%s)", ", ".join(FORMATS[name] for name in formats if name not in written), error)
    return written


def _write_program(program: ExportedProgram, path: Path) -> None:
    buffer = io.BytesIO()
    with _quietly():
        torch.export.save(program, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _write_onnx(program: ExportedProgram, signature: Signature, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401 - what torch writes ONNX with
    except ModuleNotFoundError:
        raise _NotWritableError("writing ONNX needs onnx and onnxscript: pip install onnx onnxscript") from None
    _own_memory(program)
    with _quietly(), _explained(None, "written as ONNX"):
        names: dict[str, Any] = {"input_names": list(signature.inputs), "output_names": list(signature.outputs)}
        written: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    with told_writing(path):
        written.save(path)


def _own_memory(program: ExportedProgram) -> None:
    """Copy what gets another shape: as fused attention leaves it a view is enough, as ONNX has it not."""
    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target in (aten.view.default, aten.reshape.default, aten.flatten.using_ints):
            with program.graph.inserting_before(node):
                own = {"memory_format": torch.contiguous_format}
                copy = program.graph.call_function(aten.clone.default, (node.args[0],), own)
            copy.meta = dict(node.args[0].meta)
            node.args = (copy, *node.args[1:])
    program.graph_module.recompile()


def _write_about(predictor: Predictor, model: _Written, folder: Path) -> None:
    files = {path.name: digest_of(path) for path in sorted(folder.iterdir())}
    values = {
        "layout": LAYOUT,
        "version": VERSION,
        "app": predictor.app.name,
        "weights": predictor.identity["weights"],
        "signature": asdict(model.signature),
        "half": model.half,
        "difference": model.difference,
        "about": {**predictor.about, "files": list(predictor.about.get("files", ()))},
        "files": files,
    }
    write_json(folder / ABOUT, values)


def prove(predictor: Predictor, folder: Path, formats: Sequence[str]) -> None:
    """Compare an export that is there with the run it was made of.

    Raises:
        UserError: The folder cannot be read, or a form in it gives other numbers.
    """
    network = _exportable(predictor, folder, mark=ABOUT)
    _prove(_Written.of(predictor, network, half=read_about(folder).half).cases, folder, formats)


def _prove(cases: Cases, folder: Path, formats: Sequence[str]) -> None:
    """Compare in a process that has nothing but the folder and the cases."""
    with tempfile.TemporaryDirectory() as scratch:
        cases_file = str(Path(scratch) / "cases.pt")
        torch.save(cases, cases_file)
        code = f"from mlcore.use.exporting import main; main({str(folder)!r}, {list(formats)!r}, {cases_file!r})"
        environment = {**child_environment(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run(  # noqa: S603 - our own code
            [sys.executable, "-P", "-c", code], check=False, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise UserError(f"the export could not be proved: {reason}")
    for line in done.stdout.splitlines():
        _log.info("%s", line)


def main(folder: str, formats: Sequence[str], cases_file: str) -> None:
    """What the process that proves an export does; prints a line for each form."""
    cases = torch.load(cases_file, weights_only=True)
    for form in (None, *formats):
        name = WEIGHTS if form is None else FORMATS[form]
        try:
            worst = verify(load_run(folder, device="cpu", network=form).scorer.network, cases)
        except UserError as error:
            sys.exit(f"{name}: {error}")
        print(f"{name}: largest difference from float32 {worst:.1e} (relative, {len(cases)} batches)")


def verify(network: Network, cases: Cases) -> float:
    """The largest difference of a network's outputs from those expected, relative to the largest of these.

    Raises:
        UserError: It is more than `TOLERANCE`.
    """
    return _difference(network, cases, most=TOLERANCE)


def _difference(network: Network, cases: Cases, *, most: float) -> float:
    worst = 0.0
    for case in cases:
        found = network(case["inputs"])
        for name, expected in case["outputs"].items():
            error = float((found[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
            if not error <= most:
                shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in case["inputs"].items())
                raise UserError(f"{name} is another than expected by {error:.2e} (relative) at {shapes}")
            worst = max(worst, error)
    return worst


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters have to say of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _explained(predictor: Predictor | None, what: str) -> Iterator[None]:
    """Say of a model that cannot be written what of it cannot, in a line."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        named = next((line for line in lines if "aten" in line or "operator" in line.lower()), lines[0])
        whose = "" if predictor is None else f"{predictor.source}: "
        raise _NotWritableError(f"{whose}the model cannot be {what} ({named[:300]})") from error
