"""Calibration: the strength chosen for the user, the largest that keeps a budget of damage."""

from dsas.calibration.budget import Budget
from dsas.calibration.calibrate import calibrate

__all__ = ["Budget", "calibrate"]
