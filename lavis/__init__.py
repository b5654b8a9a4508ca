"""A LAVIS-style library for language and vision."""

__version__ = "0.1.0"
