"""Datasets, one per file; every module here is imported when the datasets are looked up."""
