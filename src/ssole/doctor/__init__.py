"""What to know about a set of images before hours are spent on it: `ssole doctor`."""

from __future__ import annotations

from ssole.doctor.examine import examine
from ssole.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]
