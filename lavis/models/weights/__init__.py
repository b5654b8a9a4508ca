"""Weight files: which a configuration reads, their layouts, loading, conversion, export."""
