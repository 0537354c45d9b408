"""Features of patients as of a day: computed, snapshotted, served by Feast, selected, described.

Here belongs how a declared feature gets its value. What is declared is in ``config.feature_views``.
"""
