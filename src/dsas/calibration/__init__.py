"""Calibration: the strength chosen for the user, the largest that keeps a budget of damage."""

from dsas.calibration.budget import Budget
from dsas.calibration.largest_strength import calibrate

__all__ = ["Budget", "calibrate"]
