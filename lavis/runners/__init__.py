"""The loop around a task: epochs, evaluation, checkpoints, logs. Runners know no modality by name."""
