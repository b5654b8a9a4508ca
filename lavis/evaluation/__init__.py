"""Metrics as pure functions of (ground truth, results), and the pages that show them. They know no model."""
