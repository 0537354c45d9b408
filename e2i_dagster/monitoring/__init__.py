"""What happens to a model after its deployment: prediction log, drift, alerts, proposals to retrain.

Here belongs what looks at live models. Serving them is in ``serving``, looking at experiments in ``experiments``.
"""
