"""Functional core of e2i_dagster: pure functions over frames and small typed values.

Nothing here imports Dagster except :mod:`e2i_dagster.definitions` and the command line,
so every stage can be tested and used without starting an orchestrator.
"""

__version__ = "0.1.0"
