"""Export a trained Perceiver and prove that the export gives the same numbers.

    python apps/perceiver/export.py --model_path outputs/perceiver/demo/<run>/checkpoints/best_model.pth

writes, in a few seconds, to the folder export/ of the run (or to --output_dir):

- `model.safetensors`: the weights, with class names and constructor arguments in the header;
- `model.pt2`: a `torch.export` program of `(input [B, M, C] float32, mask [B, M] bool) -> logits [B, classes]` with
  free batch size and length (up to the model's, with fourier and learned positions), which runs without this
  repository.

Both are loaded in a fresh process and compared with the checkpoint's model on several shapes before anything is said.
"""

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

from mlcore.base.env import child_environment
from mlcore.base.errors import UserError
from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file

_TOLERANCE = 1e-5  # largest difference of a logit, relative to the largest logit
_SHAPES = ((1, 1), (2, 7), (5, 33))  # batch, length


def main() -> int:
    """Export, then verify in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=stored_file, required=True, help="checkpoint: a file, or s3://bucket/key")
    parser.add_argument("--output_dir", type=Path, help="folder of the export (default: export/ in the run folder)")
    parser.add_argument(
        "--verify", action="store_true", help="only compare an export that is there with the checkpoint"
    )
    given = parser.parse_args()

    from mlcore.run.restore import run_folder  # after parsing: torch takes seconds to import

    folder: Path = given.output_dir or run_folder(given.model_path) / "export"
    if given.verify:
        return verify(given.model_path, folder)
    export(given.model_path, folder)
    command = [sys.executable, __file__, "--model_path", str(given.model_path), "--output_dir", str(folder), "--verify"]
    return subprocess.run(command, check=False, env=child_environment()).returncode  # noqa: S603


def export(model_path: Path, folder: Path) -> None:
    """Write `model.safetensors` and `model.pt2` into `folder`, each all or nothing."""
    import torch
    from safetensors.torch import save
    from torch.export import Dim

    from mlcore.base.files import atomic_write, ensure_folder
    from quartet.apps.perceiver.restore import restore

    restored = restore(model_path)
    ensure_folder(folder)
    header = {key: json.dumps(restored.metadata[key], ensure_ascii=False) for key in ("class_names", "model")}
    with atomic_write(folder / "model.safetensors") as file:
        file.write(save(dict(restored.model.state_dict()), metadata=header))
    longest = restored.model.encoder.positions.longest
    tokens = 8 if longest is None else min(8, longest)
    example = torch.zeros(2, tokens, restored.model.encoder.input_dim), torch.ones(2, tokens, dtype=torch.bool)
    # A length of one is traced as the constant that it is.
    free = {0: Dim("batch")} if tokens == 1 else {0: Dim("batch"), 1: Dim("length", max=longest)}
    shapes = (free, free)
    program = torch.export.export(restored.model, example, dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with atomic_write(folder / "model.pt2") as file:
        file.write(buffer.getvalue())


def verify(model_path: Path, folder: Path) -> int:
    """Compare both files with the checkpoint's model; raise where they differ."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    from quartet.apps.perceiver.restore import make_model, restore

    eager = restore(model_path).model
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        settings = json.loads(file.metadata()["model"])
    rebuilt = make_model(settings).eval()
    rebuilt.load_state_dict(load_file(folder / "model.safetensors"))
    program = torch.export.load(folder / "model.pt2").module()
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.inference_mode():
        for batch, wanted in _SHAPES:
            length = min(wanted, eager.encoder.positions.longest or wanted)
            tokens = torch.randn(batch, length, settings["input_dim"], generator=generator)
            mask = torch.rand(batch, length, generator=generator) < 0.7
            mask[:, 0] = True  # no sequence is empty
            expected = eager(tokens, mask)
            for name, model in (("model.safetensors", rebuilt), ("model.pt2", program)):
                error = float((model(tokens, mask) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
                worst = max(worst, error)
                if error > _TOLERANCE:
                    raise UserError(f"{folder / name}: differs from {model_path} by {error:.2e} (relative)")
    print(f"exported to {folder}: model.safetensors, model.pt2; largest relative difference {worst:.1e}")
    return 0


if __name__ == "__main__":
    guarded(main)
