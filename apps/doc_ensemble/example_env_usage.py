"""Which settings come from the environment or from `.env`, what each is for, and what is missing. Secrets are masked.

    python apps/doc_ensemble/example_env_usage.py                what is set
    python apps/doc_ensemble/example_env_usage.py --use_wandb    the same; a key for Weights & Biases is needed

Exits with 0, or with 1 if something is missing that is needed: the key where runs are to be logged to Weights & Biases,
both AWS keys where there is one of them. Nothing is sent anywhere; `train.py --test` asks the services themselves.
"""

import argparse
import os
from collections.abc import Mapping

from mlcore.base.env import load_env, wandb_key_source
from mlcore.base.secrets import mask_secrets
from mlcore.cli.main import guarded

EXAMPLE = "env_example.txt"

PURPOSES = {
    "WANDB_API_KEY": "key of Weights & Biases, for runs with --use_wandb",
    "WANDB_PROJECT": "project on Weights & Biases; without it doc_ensemble",
    "S3_BUCKET_NAME": "bucket that gets a copy of every run while it trains",
    "AWS_ACCESS_KEY_ID": "access key of the bucket; without it a profile or role",
    "AWS_SECRET_ACCESS_KEY": "secret key of the bucket",
    "AWS_DEFAULT_REGION": "region of the bucket",
    "AWS_ENDPOINT_URL": "address of a server that is not Amazon's",
    "CUDA_VISIBLE_DEVICES": "GPUs that are used; without it all",
}
"""Every variable that a run of this app reads, and what it is for."""


def table(environ: Mapping[str, str]) -> str:
    """One line per variable: name, value (secrets as ***), purpose."""
    masked = mask_secrets({name: environ.get(name) or None for name in PURPOSES})
    shown = {name: "-" if value is None else str(value) for name, value in masked.items()}
    width, room = max(map(len, PURPOSES)), max(map(len, shown.values()))
    return "\n".join(f"{name:<{width}}  {shown[name]:<{room}}  {purpose}" for name, purpose in PURPOSES.items())


def missing(environ: Mapping[str, str], *, use_wandb: bool) -> list[str]:
    """What is needed and not there, one sentence each."""
    found = []
    if use_wandb and wandb_key_source() is None:
        found.append("WANDB_API_KEY: runs with --use_wandb need it; or log in once with `wandb login`.")
    pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    absent = [name for name in pair if not environ.get(name)]
    if len(absent) == 1:
        found.append(f"{absent[0]}: the other one of {' and '.join(pair)} is set; give both or neither.")
    return found


def untouched(environ: Mapping[str, str]) -> list[str]:
    """Variables that still have a value of the example file, such as `your_wandb_api_key_here`."""
    return [name for name in PURPOSES if environ.get(name, "").lower().replace("-", "_").startswith("your_")]


def main() -> int:
    """Show the variables, then what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--use_wandb", action="store_true", help="runs are to be logged to Weights & Biases")
    use_wandb: bool = parser.parse_args().use_wandb
    files = load_env()
    print(
        f".env: {', '.join(map(str, files)) or f'none; `cp {EXAMPLE} .env` makes one, at the root of the checkout'}\n"
    )
    print(table(os.environ))
    problems = missing(os.environ, use_wandb=use_wandb)
    problems += [
        f"{name}: still the value of {EXAMPLE}; put in your own, or remove the line." for name in untouched(os.environ)
    ]
    if not os.environ.get("S3_BUCKET_NAME"):
        print("\nS3_BUCKET_NAME is not set: runs stay on this machine.")
    print(
        "\n"
        + "\n".join(["Missing:", *(f"  {problem}" for problem in problems)] if problems else ["Nothing is missing."])
    )
    return int(bool(problems))


if __name__ == "__main__":
    guarded(main)
