"""`FewShotClassifier`: a classifier of a user's own pictures, in scikit-learn's manner, on top of the engine.

``estimator`` has the class, ``images`` and ``values`` say what may be passed to it, ``predicting`` makes numbers and
labels of images, ``report`` says what is found on them; ``content`` turns a fitted classifier into plain values and
back, ``folder`` writes these to a folder with a model card, and ``quiet`` keeps the engine from changing anything else
in the process.
"""

from dassl_lite.classifier.estimator import DEFAULT_METHOD, FewShotClassifier
from dassl_lite.classifier.predicting import Prediction

__all__ = ["DEFAULT_METHOD", "FewShotClassifier", "Prediction"]
