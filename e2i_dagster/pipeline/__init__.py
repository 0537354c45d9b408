"""What a stage depends on, and whether a stored version is still the answer to it.

Here belongs what can be said without an orchestrator: digests of code, fingerprints, reuse. Here does not belong
what runs stages (``assets``) or keeps values (``versions``).
"""
