"""Records: what an example is, and how its spans become arrays."""
