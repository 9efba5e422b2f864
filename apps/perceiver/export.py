"""Export a trained Perceiver and prove that the export gives the same numbers: `quartet export`.

    python apps/perceiver/export.py --model_path outputs/perceiver/demo/<run>/checkpoints/best_model.pth

writes to the folder export/ of the run (or to --output_dir):

- `model.safetensors`: the weights; `model.json`: what the model is, its preprocessing and classes;
- `model.pt2`: a `torch.export` program of `(input [B, M, C] float32, mask [B, M] bool) -> logits [B, classes]` with
  free batch size and length (up to the model's, with fourier and learned positions); `model.onnx`: the same for ONNX
  Runtime; both run without this repository, as `predict.py` beside them does.
"""

from mlcore.cli.main import guarded
from mlcore.use.command import export_script

if __name__ == "__main__":
    guarded(lambda: export_script(__doc__ or ""))
