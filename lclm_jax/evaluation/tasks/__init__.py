"""Tasks of this package: published rows, questions about histories, and a generator of them."""
