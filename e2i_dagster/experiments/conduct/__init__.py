"""An experiment while it runs and when it ends: units, events, looks, results, pages, and their rows in the warehouse.

Here belongs what happens to units and who decided it. The numbers come from ``statistics``.
"""
