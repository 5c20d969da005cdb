"""HTML reports of runs, prepared data and capacity, made from files."""
