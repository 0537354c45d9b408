"""What starts runs by itself and who is told: sensors and schedules. Jobs are in ``jobs``."""
