"""FLOPs and bytes of a workload, counted from shapes, and the chips that do it."""
