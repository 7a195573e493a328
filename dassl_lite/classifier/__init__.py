"""`FewShotClassifier`: a scikit-learn style classifier for a user's own pictures, on top of the engine.

``estimator`` has the class. ``images``, ``labelled`` and ``values`` turn its arguments into plain values, ``fitting``
turns its parameters into a run, and ``head`` holds the result with its classes. ``predicting`` computes numbers and
labels for images, and ``report`` sums them up. ``content`` turns a fitted classifier into plain values and back,
``folder`` writes these to a folder with a model card, and ``export`` writes a file for other programs. ``quiet`` keeps
the engine from changing anything else in the process.
"""

from dassl_lite.classifier.estimator import DEFAULT_METHOD, FewShotClassifier
from dassl_lite.classifier.predicting import Prediction

__all__ = ["DEFAULT_METHOD", "FewShotClassifier", "Prediction"]
