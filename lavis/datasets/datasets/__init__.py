"""Datasets, one file per kind of annotation; their builders stand beside them."""
