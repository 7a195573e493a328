"""Result pages: self-contained HTML files that work offline, in light and dark mode, and in print.

`base` builds a page from charts, tables and text; the other modules define the content of each page.
"""
