"""The files of a run, and a run for reading."""
