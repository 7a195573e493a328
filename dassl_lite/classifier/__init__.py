"""`FewShotClassifier`: a classifier of a user's own pictures, in scikit-learn's manner, on top of the engine.

``estimator`` has the class, ``images`` says what may be passed as images, ``report`` what is found on them; ``content``
turns a fitted classifier into plain values and back, ``folder`` writes these to a folder with a model card, and
``quiet`` keeps the engine from changing anything else in the process.
"""

from dassl_lite.classifier.estimator import DEFAULT_METHOD, FewShotClassifier, Prediction

__all__ = ["DEFAULT_METHOD", "FewShotClassifier", "Prediction"]
