"""The page of ``serve.py``: a visitor's work is in ``session``, HTML of it in ``look``, the widgets in ``page``."""
