"""Entrances for people: the ``e2i`` command, one module for each group, and the user interfaces that it starts."""
