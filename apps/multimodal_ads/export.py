"""Export a trained ad classifier, adapters merged, and prove that the export gives the same numbers: `quartet export`.

    python apps/multimodal_ads/export.py --model_path whole_finetune/<experiment>/<run>/checkpoint_best.ckpt

writes to the folder export/ of the run (or to --output_dir):

- `model.safetensors`: all weights, those of the frozen encoders too, adapters merged into the layers they adapt;
  `model.json`: what the model is, how pictures are prepared, its decision; `tokenizer.json`, where it reads texts;
- `model.pt2`: a `torch.export` program of prepared pictures and tokens of texts with free batch size; `model.onnx`: the
  same for ONNX Runtime; both run without this repository, as `predict.py` beside them does. NaFlex models have none:
  their positions are resized for each picture, which depends on its shape.
"""

from mlcore.cli.main import guarded
from mlcore.use.command import export_script

if __name__ == "__main__":
    guarded(lambda: export_script(__doc__ or ""))
