"""What the command-line tools call: one run, an evaluation, a sweep, listings. May import every other room."""
