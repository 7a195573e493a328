"""Methods, one per file; every module here is imported when the trainers are looked up."""
