"""Figures over complete arrays, and how sure they are: classification, calibration, ranking, masks.

May import base.
"""
