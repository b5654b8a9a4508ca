"""METEOR 1.5 and SPICE 1.0 through pycocoevalcap, in a process of their own: what they lack, how long they may take.

Provenance: the programs and their Python callers are pycocoevalcap's (github.com/salaniz/pycocoevalcap). Nothing is ever
downloaded from here. SPICE has been tried against a stand-in for its program only; METEOR has been run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from lavis.evaluation.files import read_json

logger = logging.getLogger(__name__)

NEEDED_FILES = {
    "METEOR": ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz"),
    "SPICE": ("spice/spice-1.0.jar", "spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar"),
}
VERSIONS = {"METEOR": "METEOR 1.5", "SPICE": "SPICE 1.0 with Stanford CoreNLP 3.6.0"}
_PACKAGE = "pip install pycocoevalcap==1.2"
_JAVA = "apt-get install default-jre-headless"
_MODELS = "python -m pycocoevalcap.spice.get_stanford_models"
_LAST_WORDS = 2000  # characters of stderr that a message shows


class MetricUnavailable(RuntimeError):
    """A metric cannot be computed on this machine; the message says what is missing or went wrong."""


def missing_parts(metric: str) -> str | None:
    """What keeps METEOR or SPICE from running here, each part with the command that installs it; None when nothing does."""
    if metric not in NEEDED_FILES:
        return None
    lacks = []
    if shutil.which("java") is None:
        lacks.append(f"java was not found on PATH (1.8 or newer); install a Java runtime, for instance with `{_JAVA}`")
    folder = package_folder()
    if folder is None:
        return "; ".join([*lacks, f"the package pycocoevalcap is not installed; install it with `{_PACKAGE}`"])
    absent = [name for name in NEEDED_FILES[metric] if not (folder / name).is_file()]
    models = [name for name in absent if "stanford" in name]
    shipped = [name for name in absent if name not in models]
    if shipped:
        again = _PACKAGE.replace("install", "install --force-reinstall --no-deps")
        lacks.append(f"{', '.join(shipped)} not found in {folder}; reinstall the package with `{again}`")
    if models:
        # the command does nothing where the first of the two files is there
        first = "" if len(models) == 2 else f"rm {folder / NEEDED_FILES['SPICE'][1]}; "
        lacks.append(f"{', '.join(models)} (Stanford CoreNLP 3.6.0) not found in {folder}; fetch them with `{first}{_MODELS}`")
    return "; ".join(lacks) or None


def java_score(
    metric: str, references: Sequence[Sequence[str]], predictions: Sequence[str], *, timeout: float
) -> tuple[float, list[float]]:
    """The corpus score and one per item, of tokenised captions, by a program that is stopped after `timeout` seconds.

    MetricUnavailable says what is missing, or why the program did not finish, with what it wrote to stderr.
    """
    reason = missing_parts(metric)
    if reason is not None:
        raise MetricUnavailable(reason)
    logger.info("%s: starting Java for %d captions, %.0f seconds at most", metric, len(predictions), timeout)
    with tempfile.TemporaryDirectory(prefix="caption-metric-") as folder:
        given, written = Path(folder) / "captions.json", Path(folder) / "scores.json"
        given.write_text(json.dumps({"references": list(map(list, references)), "predictions": list(predictions)}))
        stderr = _run(
            metric, [sys.executable, "-m", "lavis.evaluation.captions.java_worker", metric, str(given), str(written)], timeout
        )
        try:
            found = read_json(written)
        except ValueError:
            raise MetricUnavailable(f"the {metric} program did not finish; its last words: {stderr}") from None
    without = sum(not math.isfinite(value) for value in found["each"])
    if without:
        raise MetricUnavailable(f"the {metric} program gave no number for {without} of {len(predictions)} captions")
    return found["corpus"], found["each"]


def _run(metric: str, command: list[str], timeout: float) -> str:
    """Run a command to its end; what it wrote last. It and all that it started are killed when time is over."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        try:
            process.wait(timeout)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        words = said.read().decode("utf-8", errors="replace").strip()[-_LAST_WORDS:] or "(none)"
    if late:
        raise MetricUnavailable(f"the {metric} program was stopped after {timeout:g} seconds; its last words: {words}")
    return words


def package_folder() -> Path | None:
    """Where pycocoevalcap is installed, if it is."""
    spec = importlib.util.find_spec("pycocoevalcap")
    places = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(places))) if places else None


def java_version() -> str:
    """What `java -version` says first, or what keeps it from it."""
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    said = re.search(r"\S.*", done.stderr + done.stdout)
    return said[0] if said else "unknown"


def package_version(name: str) -> str:
    """The version of an installed distribution, or "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
