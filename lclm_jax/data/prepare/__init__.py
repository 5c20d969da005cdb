"""Preparation: input files to shards of tokenised examples."""
