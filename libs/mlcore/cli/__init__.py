"""The command line: argparse's face of an application.

`app` (the one description of an application), `flags` (its flags and the help), `parse` (from arguments to an
`Invocation`), `main` (what every script shares), `multirun` (sweeps). Imports `mlcore.base` and `mlcore.config`, and
nothing heavy: `--help` comes before torch.
"""
