"""The report of a run folder: one page."""
