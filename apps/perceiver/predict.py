"""Classify new data with a trained Perceiver: `quartet predict` under the names that its flags have here.

    python apps/perceiver/predict.py --model_path checkpoints/best_model.pth photos/ one_more.jpg
    python apps/perceiver/predict.py --model_path checkpoints/best_model.pth new.ts --output predictions.csv

The checkpoint knows what it was trained on: a model of images takes image files and folders of them (pictures of
another size are resized), a model of sequences .ts and .npz files, with or without labels, and folders of them. Writes
a table in the order given: input, class, probability, p_<class> for every class, problem.
"""

from mlcore.cli.main import guarded
from mlcore.use.command import predict_script
from quartet.apps.perceiver.app import APP

if __name__ == "__main__":
    guarded(lambda: predict_script(APP, __doc__ or "", on_bad="on_bad_sample"))
