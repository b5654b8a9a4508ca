"""The import below precedes torch in every benchmark, see lavis/__init__.py."""

import lavis  # noqa: F401
