"""The recipe of the demo model: `glyphs`, `pictures`, `captions`, `model`, `pretraining`, `export`, and `tilt`.

`python tools/pretrain_demo.py` runs it. Everything is drawn here; no picture and no text comes from elsewhere.
"""
