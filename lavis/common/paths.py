"""Where things are: the package, the cache, and paths written by users."""

from __future__ import annotations

import os
import sys
from pathlib import Path

library_root = Path(__file__).resolve().parent.parent


def resolve(path: str | os.PathLike[str]) -> Path:
    """A user's path with ``~`` and environment variables expanded; relative paths stay relative to the
    working directory."""
    return Path(os.path.expandvars(os.path.expanduser(os.fspath(path))))


def in_repository(path: str) -> str:
    """A path from the folder that holds the package: as it is where that is the working directory, else absolute.

    ``${repository:assets/quickstart}`` in a YAML, so that what it reads is found from anywhere.
    """
    repository = library_root.parent
    return path if Path.cwd() == repository else str(repository / path)


def get_cache_root() -> Path:
    """``$LAVIS_CACHE``, or ``lavis`` in the user's cache directory. Nothing is created."""
    if os.environ.get("LAVIS_CACHE"):
        return resolve(os.environ["LAVIS_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return resolve(os.environ["XDG_CACHE_HOME"]) / "lavis"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lavis"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "lavis"
    return Path.home() / ".cache" / "lavis"
