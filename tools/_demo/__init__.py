"""The recipe of the demo model: `pictures`, `captions`, `model`, `pretraining` and `tilt`.

`python tools/pretrain_demo.py` runs it. Everything is drawn here; no picture and no text comes from elsewhere.
"""
