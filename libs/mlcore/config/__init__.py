"""Typed settings: from the defaults of a model, files, the environment and the command line to one validated value.

`section`, `sections`, `schedule` and others (the models), `text` (YAML and JSON), `names` (every setting by all its
names), `layers` (who wins), `compose` (all sources together), `validation`, `dump` (back to text, the schema,
differences). Imports `mlcore.base` only, and nothing heavy.
"""
