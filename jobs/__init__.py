"""The jobs, and the order in which a run of the whole path takes them.

Here belongs what can be launched. What launches by itself is in ``sensors``, what is made is in ``assets``.
"""
