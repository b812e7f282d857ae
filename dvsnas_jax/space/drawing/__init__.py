"""A genotype for the eye: layout, end of the cell, the figure."""
