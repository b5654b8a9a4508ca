"""Foundations: registry, configuration, processes, seeds, checkpoints, schedules, logs."""
