"""The published systems, one file each: what a system freezes, adapts and loads."""
