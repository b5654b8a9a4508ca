"""From published downloads to the files that the readers of `lavis.datasets` read; tools/ holds a command for each."""
