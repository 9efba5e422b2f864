"""Tell ads from other images: `quartet predict` under the names that its flags have here.

    python apps/multimodal_ads/predict.py --model_path <run>/checkpoint_best.ckpt image.jpg folder/ --text "50 % off"
    python apps/multimodal_ads/predict.py --model_path <run>/checkpoint_best.ckpt --csv table.csv --output scores.csv

takes images, folders of them, or a table with the columns local_image_path (a model of texts needs none) and text_info
(a model of pictures needs none; prepare.py --ocr fills it). Writes a table in the order given: input, or the table's
own columns; probability of an ad; predicted, at the threshold that the run chose on its validation data; gate, the
picture's share in a gated fusion; problem. A model that was trained with texts warns where there are none.
"""

from mlcore.cli.main import guarded
from mlcore.use.command import predict_script
from quartet.apps.multimodal_ads.app import APP

if __name__ == "__main__":
    guarded(lambda: predict_script(APP, __doc__ or ""))
