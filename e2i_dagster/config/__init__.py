"""Policy (``config/*.yaml``) as frozen, validated values, and the environment as typed access."""
