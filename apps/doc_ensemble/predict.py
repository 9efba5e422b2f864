"""Classify pages with a trained model: `quartet predict` under the names that its flags have here.

    python apps/doc_ensemble/predict.py --model_path <run>/checkpoints/best_model.pth scan.png bundle.pdf folder/
    python apps/doc_ensemble/predict.py --model_path a.pth --model_path b.pth --csv pages.csv --output predictions.csv

takes images, all pages of TIFF and PDF files, folders of them, or a table with the column image (and page, from 1, or
"bundle.pdf#3"). The probabilities of several models are averaged, each page is decoded once for all of them. Writes a
table in the order given: the columns of the table (input for files), class, probability, p_<class> for every class,
problem. With --files DIR, small pictures of the pages go into a folder for each class.
"""

from mlcore.cli.main import guarded
from mlcore.use.command import predict_script
from quartet.apps.doc_ensemble.app import APP

if __name__ == "__main__":
    guarded(lambda: predict_script(APP, __doc__ or ""))
