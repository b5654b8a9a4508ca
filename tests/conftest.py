"""Shared by all tests: quiet machines, and a line that says how many parity records were compared."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests import parity

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if parity.CHECKED:
        terminalreporter.write_line(f"parity: {parity.CHECKED} records compared")
