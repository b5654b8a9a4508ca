"""Generated data of the quickstart."""
