"""Loading deliveries into the raw tables: accept, reject with reason, merge, withdraw, reconcile, read back.

Here belongs what happens between a delivered frame and the raw tables. Reading files is in ``sources``, the rules of
rows in ``tables``.
"""
