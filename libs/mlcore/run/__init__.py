"""From settings to a finished run: session, build, final evaluation, folder, copy, runs of runs, dry run, doctor.

May import base, config, data, metrics, trackers, training, report, cli and remote.
"""
