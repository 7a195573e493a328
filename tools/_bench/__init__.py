"""One subject of `bench.py` per module: `NAME`, `add_parser(subparsers)` and `run(args)`."""
