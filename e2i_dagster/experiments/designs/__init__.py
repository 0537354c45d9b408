"""Before an experiment: its size, boundaries, randomization, and how its size may be looked at again.

Here belongs what is fixed before the first unit. Estimates from data are in ``statistics``, rows in ``conduct``.
"""
