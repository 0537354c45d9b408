"""Tests, intervals and estimates of experiments over frames and sufficient statistics.

Here belongs what can be computed from numbers alone. What reads or writes the warehouse is in ``conduct``.
"""
