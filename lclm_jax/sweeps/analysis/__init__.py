"""The statistics of a sweep: scaling laws, paired differences, and the values of the paper."""
