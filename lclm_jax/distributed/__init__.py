"""Devices, processes and how they share the work of one run."""
