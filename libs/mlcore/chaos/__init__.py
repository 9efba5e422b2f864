"""Faults on purpose: real runs killed, starved and damaged, then continued and compared with undisturbed ones.

May import base, config, cli, report and training.
"""
