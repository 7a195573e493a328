"""The recipe of the demo model, which ``tools/pretrain_demo.py`` runs. All pictures and captions are made here.

Read ``pictures``, ``captions``, ``model`` and ``pretraining`` in this order; ``tilt`` chooses the suite's tilt.
"""
