"""The recorded numbers of the published system, and how many of them this run has checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKED = 0  # records compared so far in this run


def parity_dir() -> Path:
    """The folder of the records: $LAVIS_PARITY_DIR, else shared/parity beside the repository.

    Where it is missing the calling test is skipped, or fails when CI=true.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "parity"
    folder = Path(os.environ.get("LAVIS_PARITY_DIR") or default)
    if folder.is_dir():
        return folder
    message = f"no parity records in {folder}; set LAVIS_PARITY_DIR"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def count_records(n: int) -> None:
    """Add `n` compared records to the count that is printed at the end of the run."""
    global CHECKED
    CHECKED += n
