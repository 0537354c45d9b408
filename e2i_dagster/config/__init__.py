"""Policy (``config/*.yaml``) as frozen, validated values.

Here belongs what each file may say, and the names in it that match nothing. How files are read is in
``policy_files``; what is done with the values is in the package of each stage.
"""
