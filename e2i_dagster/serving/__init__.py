"""Models behind endpoints: releases, services, deployment, health, audit.

Here belongs what runs or describes a service. Which version may be served is decided in ``registry``.
"""
