"""Command-line tools: thin scripts over the engine."""
