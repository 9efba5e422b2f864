"""Fine-tune SAM-Med3D to segment intracerebral haemorrhage in brain CT.

    python apps/sam_med3d_ich/train.py                       the demo, under three minutes on two cores
    python apps/sam_med3d_ich/train.py --train_csv train.csv --val_csv val.csv --mask_dir masks --output_dir outputs/ich
    python apps/sam_med3d_ich/train.py +experiment=hippocampus data.train_csv=train.csv ...   small volumes
    python apps/sam_med3d_ich/train.py --test                check the system

Starts from the released weights (fetched from Hugging Face; --weights FILE or SAM_MED3D_WEIGHTS where there is no
network). Leaves a run folder; docs/sam_med3d_ich.md says what is in it. An interrupted run (exit code 75) continues
when the same command is given again.
"""

from mlcore.base.signals import listen

if __name__ == "__main__":
    listen()  # before what takes long to import
    from mlcore.run.app import train
    from quartet.apps.sam_med3d_ich.app import APP

    train(APP)
