"""Sweeps for `launch.ablate`."""
