"""Region prompts: how a region reaches the Q-Former."""
