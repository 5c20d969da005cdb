"""Rows of a dataset to raw examples, whatever their fields are called."""
