"""Input files of any format as rows."""
