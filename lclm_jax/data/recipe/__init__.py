"""The training streams of the recipe: prepared examples to records."""
