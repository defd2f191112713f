"""Check of a data set before training: `ssole doctor` calls `examine`, which returns a `Report`.

`examine` calls the other files in turn. `scan` reads every image once and decodes a sample as training would.
`contents` (copies too), `estimate` and `suggest` answer one question each, and `findings` turns the answers into
verdicts. `report` holds the result and its JSON, and `page` prints it. Thresholds and texts may be changed freely.
Field names of the data classes are the keys of the JSON in docs/doctor.md. To rename or remove one, raise
`report.FORMAT`.
"""

from __future__ import annotations

from ssole.doctor.examine import examine
from ssole.doctor.report import Finding, Report

__all__ = ["Finding", "Report", "examine"]
