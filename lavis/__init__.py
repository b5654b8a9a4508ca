"""RegionBLIP in a LAVIS-style library: models, datasets, tasks and runners for language, images, regions and point
clouds.

Importing it is light: nothing below is loaded until it is asked for.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import metadata, util
from pathlib import Path

__version__ = "0.1.0"

OTHER = "salesforce-lavis"
NEEDED = ("torch", "transformers", "omegaconf")  # an environment that lacks one of them is another than ours


class PackageClashWarning(UserWarning):
    """Two packages claim the name ``lavis``. (Python hides an ImportWarning by default; this one is to be seen.)"""


def find_clash() -> str | None:
    """What to tell the user where another package named ``lavis`` is about; None where there is none.

    Noticed are an installed salesforce-lavis, in the same folder (its files and ours are mixed) or in another (one
    hides the other), and any other ``lavis`` folder on ``sys.path``, which would be imported where it comes first.
    """
    here = Path(__file__).resolve().parent
    try:
        other = Path(str(metadata.distribution(OTHER).locate_file("lavis"))).resolve()
    except metadata.PackageNotFoundError:
        copies = [Path(entry or ".").resolve() / "lavis" for entry in sys.path]
        foreign = [copy for copy in copies if _is_package(copy) and not _is_ours(copy)]
        return f"this lavis ({here}) and another package of that name ({foreign[0]}) are both importable" if foreign else None
    if other == here:
        return (
            f"{OTHER} is installed into the same folder as this lavis ({here}), so that files of both are mixed; "
            f"run `pip uninstall {OTHER}` and install this package again"
        )
    return f"this lavis ({here}) hides the installed {OTHER} ({other}); use one of them per environment"


def _is_package(folder: Path) -> bool:
    return os.path.isfile(folder / "__init__.py")


def _is_ours(package: Path) -> bool:
    return os.path.isfile(package / "common" / "modalities.py")


def find_missing() -> str | None:
    """What to do where this Python lacks what lavis needs, most often because no environment is activated; else None."""
    missing = [name for name in NEEDED if util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"{sys.executable} has no {', '.join(missing)}, which lavis needs. In a checkout `make install` puts all into .venv: run "
        "`source .venv/bin/activate`, or .venv/bin/python in place of python. Elsewhere: `pip install .` in the checkout"
    )


if _missing := find_missing():
    raise ModuleNotFoundError(_missing)
if _clash := find_clash():
    warnings.warn(_clash, PackageClashWarning, stacklevel=2)
