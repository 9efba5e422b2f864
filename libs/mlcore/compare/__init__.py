"""Finished runs side by side, of any app: read from their folders, compared in figures, settings and cost.

May import base, config, metrics, report, trackers and run.
"""
