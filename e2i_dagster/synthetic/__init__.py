"""The synthetic data set: processes with known effects, the tables drawn from them, and what is true of them.

Here belongs what invents rows. Reading rows that people deliver is in ``sources``.
"""
