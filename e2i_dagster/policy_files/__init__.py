"""Reading policy files: one reader of YAML, which values were read while a stage ran, and the environment.

Here belongs what every policy file needs. What a file says is in ``config`` (and ``tables`` for the vocabulary).
"""
