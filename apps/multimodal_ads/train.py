"""Train a classifier that tells ads from other images, by picture and text.

    python apps/multimodal_ads/train.py                                  the demo, under three minutes on two cores
    python apps/multimodal_ads/train.py --train_csv train.csv            SigLIP 2 SO400M + LaBSE, frozen, gated fusion
    python apps/multimodal_ads/train.py vision_encoder=resnet50 text_encoder=none --train_csv train.csv
    python apps/multimodal_ads/train.py +experiment=directFT_lightning_base --base_dir data
    python apps/multimodal_ads/train.py -m vision_encoder=siglip2_base,resnet50 pooling=mean,attention --base_dir data

Published weights come from the Hugging Face hub or from folders (vision_encoder.model, text_encoder.model). Leaves a
run folder below whole_finetune/; docs/multimodal_ads.md says what is in it. An interrupted run (exit code 75)
continues when the same command is given again.
"""

from mlcore.base.signals import listen

if __name__ == "__main__":
    listen()  # before what takes long to import
    from mlcore.run.app import train
    from quartet.apps.multimodal_ads.app import APP

    train(APP)
