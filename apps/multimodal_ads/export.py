"""Export a trained ad classifier, adapters merged, and prove that the export gives the same numbers.

    python apps/multimodal_ads/export.py --model_path whole_finetune/<experiment>/<run>/checkpoint_best.ckpt

writes to the folder export/ of the run (or to --output_dir):

- `model.safetensors`: all weights, those of the frozen backbone too, adapters merged into the layers they adapt;
- `model.pt2`: a `torch.export` program of `(pixel_values float32, text float32 [B, Dt], has_text bool [B]) ->
  logits [B]` with free batch size, which runs without this repository; inputs of a modality that is not used are left
  out. NaFlex models have none: their positions are resized for each picture, which fixed shapes cannot do;
- `model.json`: the names and shapes of the inputs, and the text encoder that makes `text`.

Both are loaded in a fresh process and compared with the checkpoint's model before anything is said.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from mlcore.base.env import child_environment
from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file


def main() -> int:
    """Export, then verify in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=stored_file, required=True, help="checkpoint: a file, or s3://bucket/key")
    parser.add_argument("--output_dir", type=Path, help="folder of the export (default: export/ in the run folder)")
    parser.add_argument(
        "--verify", action="store_true", help="only compare an export that is there with the checkpoint"
    )
    given = parser.parse_args()

    from mlcore.run.restore import run_folder
    from quartet.apps.multimodal_ads.exporting import export, verify  # after parsing: torch takes seconds to import

    folder: Path = given.output_dir or run_folder(given.model_path) / "export"
    if given.verify:
        return verify(given.model_path, folder)
    export(given.model_path, folder)
    command = [sys.executable, __file__, "--model_path", str(given.model_path), "--output_dir", str(folder), "--verify"]
    return subprocess.run(command, check=False, env=child_environment()).returncode  # noqa: S603


if __name__ == "__main__":
    guarded(main)
