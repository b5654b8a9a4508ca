"""The Q-Former, its attention, its adapters."""
