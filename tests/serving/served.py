"""app.py in a process of its own, on the shipped checkpoint and a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from lavis.serving.loading import REPOSITORY, SHIPPED


class Served:
    """Starts at once; `url` waits until the page answers."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(REPOSITORY / "app.py"), "--checkpoint", str(REPOSITORY / SHIPPED), "--port", "0"]
        self.folder, self.log = folder, folder / "app.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder)

    @cached_property
    def url(self) -> str:
        """http://127.0.0.1:<port>."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # comes when the page answers, or is empty when the process has ended
        found = re.match(r"(http://127\.0\.0\.1:\d+) serves .*regionblip\.safetensors \(ready in [\d.]+ s\)", line)
        assert found, f"app.py said {line!r} and {self.log.read_text()}"
        return found.group(1)

    def end(self) -> None:
        """SIGTERM, as a service manager ends it; it must leave no uploads behind and have logged no failure."""
        self.process.terminate()
        self.process.communicate(timeout=120)
        assert not list(self.folder.glob("regionblip-page-*")), "the folder of uploads is still there"
        assert "Traceback" not in self.log.read_text(), self.log.read_text()
