"""Stored values: immutable files of the lake, their digests, and the ledger that says which is current.

Here belongs what makes a value known again. Whether a stage must run again is asked in ``pipeline``.
"""
