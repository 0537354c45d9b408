"""The groups of the ``e2i`` command, one module each."""
