"""The loop and what it is made of: task, engine, losses, optimisers, schedules, evaluator, progress, checkpoints.

May import base, config, data, metrics and trackers.
"""
