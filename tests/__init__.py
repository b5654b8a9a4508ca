"""The import below precedes torch in every test, see lavis/__init__.py."""

import lavis  # noqa: F401
