"""Training: the loop over stages, the update, and everything a run records."""
