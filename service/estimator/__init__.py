"""Classmith as a scikit-learn classifier: `pip install 'classmith[sklearn]'`.

    from service.estimator import ClassmithClassifier

    classifier = ClassmithClassifier().fit(images, labels)        # in this process; no service, no torch
    classifier.predict_proba(others)

See ClassmithClassifier for what X may be, for descriptions, and for fitting by a service.
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("The estimator needs scikit-learn: pip install 'classmith[sklearn]'") from error

from service.estimator.classifier import ClassmithClassifier

__all__ = ["ClassmithClassifier"]
