"""Datasets, one per file. Every module here is imported when datasets are looked up, so a new file needs no list."""
