"""Pages of results: one self-contained HTML file each, which opens without a network, in light and dark, and prints.

`base` puts together a page of charts, tables and text; the other modules say what is on a page.
"""
