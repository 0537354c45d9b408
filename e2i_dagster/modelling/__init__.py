"""What every model stands on: the conversion of frames to model input, preprocessing, unfitted estimators.

Here belongs what selection, training, explanation and serving share. Choosing is in ``selection``, fitting in
``training``.
"""
