"""Thin entry points: parse, then call the library."""
