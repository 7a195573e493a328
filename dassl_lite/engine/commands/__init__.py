"""The code behind the command-line tools: runs, evaluations, sweeps, listings. May import every other subpackage."""
