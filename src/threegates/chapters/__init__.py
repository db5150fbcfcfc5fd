"""A folder a chapter: its estimates, its views of the records, its plots."""
