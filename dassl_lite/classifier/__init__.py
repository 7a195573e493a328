"""`FewShotClassifier`: a classifier of a user's own pictures, in scikit-learn's manner, on top of the engine.

``estimator`` has the class. What it is given becomes plain values in ``images``, ``labelled`` and ``values``;
``fitting`` makes a run of its parameters; ``head`` is what the run leaves, with its classes. ``predicting`` makes
numbers and labels of images, ``report`` says what is found on them; ``content`` turns a fitted classifier into plain
values and back, ``folder`` writes these to a folder with a model card, ``export`` a file for other programs, and
``quiet`` keeps the engine from changing anything else in the process.
"""

from dassl_lite.classifier.estimator import DEFAULT_METHOD, FewShotClassifier
from dassl_lite.classifier.predicting import Prediction

__all__ = ["DEFAULT_METHOD", "FewShotClassifier", "Prediction"]
