"""Sweeps: many training runs, shared by workers that coordinate through a directory alone.

A sweep is a list of cells, of which each is a training run. This room knows a cell by its name and
by the command that trains it. Nothing here imports JAX, which would take the devices of a cell.
"""
