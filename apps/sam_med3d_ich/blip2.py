"""Ask BLIP-2 about a volume: the trained image encoder, a Q-Former and a language model.

    python apps/sam_med3d_ich/blip2.py --encoder sam_encoder.pth --image ct.nii.gz --demo
    python apps/sam_med3d_ich/blip2.py --encoder sam_encoder.pth --image ct.nii.gz --language_model ./opt-125m
    python apps/sam_med3d_ich/blip2.py --encoder sam_encoder.pth --image ct.nii.gz --tokens_out tokens.npy

The volume goes through the preprocessing that is noted in the encoder's file; the model sees one cube of the encoder's
size, centred on the head and padded where the volume is smaller. The answer goes to the terminal and, with --output, to
a JSON file. Only the encoder is trained by this app: without a trained Q-Former (see vision_tower.py) the text says
nothing about the image. --tokens_out writes the encoder's image tokens, float32 [g^3, C], for other tools; it needs no
language model.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file


def main() -> int:
    """Parse the command line and answer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--encoder", type=stored_file, required=True, metavar="FILE", help="sam_encoder.pth of a training run")
    add("--image", type=Path, required=True, metavar="FILE", help=".nii, .nii.gz, .npy, .npz or .pkl")
    add("--prompt", default="Question: is there a haemorrhage? Answer:", help="text that the answer continues")
    language = parser.add_mutually_exclusive_group()
    language.add_argument(
        "--language_model", metavar="NAME", help="folder or hub name of a causal language model (safetensors only)"
    )
    language.add_argument("--demo", action="store_true", help="tiny random language model; its text is meaningless")
    add("--qformer", default="none", metavar="FILE", help="trained Q-Former (.safetensors), or none (default)")
    add("--array_spacing", type=float, nargs=3, metavar=("X", "Y", "Z"), help="voxel size in mm of bare arrays")
    add("--max_new_tokens", type=int, default=30, metavar="N", help="longest answer (default: 30)")
    add("--tokens_out", type=Path, metavar="FILE", help="write the image tokens (.npy)")
    add("--output", type=Path, metavar="FILE", help="write the answer (.json)")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N (default: auto)")
    given = parser.parse_args()
    if given.language_model is None and not given.demo and given.tokens_out is None:
        parser.error("nothing to do: give --language_model NAME, --demo or --tokens_out FILE")
    if given.max_new_tokens < 1:
        parser.error("--max_new_tokens must be at least 1")

    from quartet.apps.sam_med3d_ich.answering import run  # after parsing: transformers takes seconds to import

    given.qformer = None if given.qformer == "none" else Path(given.qformer)
    given.array_spacing = tuple(given.array_spacing) if given.array_spacing else None
    return run(given)


if __name__ == "__main__":
    guarded(main)
