"""The tables of the warehouse column by column: the raw ones in ``raw``, what a stage writes in the module of its name.

Here belongs what a column means and accepts; what judges rows is in :mod:`e2i_dagster.tables`, what creates tables in
:mod:`e2i_dagster.database`.
"""
