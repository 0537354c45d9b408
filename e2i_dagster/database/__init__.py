"""The PostgreSQL of the warehouse: the embedded server, connections, roles, locks, migrations, checks.

Here belongs what is true of the database whatever it holds. The tables are described in ``tables``, rows are written
by ``loading`` and the stages.
"""
