"""One command that shows on one accelerator that the system is right and how fast it is."""
