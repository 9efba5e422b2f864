"""Figures over complete arrays, and how sure they are: classification, calibration, ranking, intervals.

May import base.
"""
