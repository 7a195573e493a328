"""The page of ``serve.py``: ``session`` holds a visitor's work, ``look`` makes HTML of it, ``page`` has the widgets."""
