"""The procedural street video: endless labelled clips with true motion, NumPy only."""
