"""Pages and figures that show a run: galleries, summaries, curves, tables. Only main programs and serving import it."""
