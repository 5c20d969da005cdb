"""Scaled ablations: a list of cells, walked by any number of workers, and what it shows."""
