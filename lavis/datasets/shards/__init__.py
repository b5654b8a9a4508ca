"""Datasets in webdataset shards (tar files)."""
