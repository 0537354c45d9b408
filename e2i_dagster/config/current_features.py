"""The feature views of the current configuration."""

from __future__ import annotations

from e2i_dagster.config.feature_views import FEATURE_TABLES, FeatureView, columns_read, ordered
from e2i_dagster.config.policy import current_policy
from e2i_dagster.errors import ConfigError


def feature_views() -> tuple[FeatureView, ...]:
    """All views of the current configuration.

    Raises:
        ConfigError: a file of ``config/features`` is wrong, or there is none.
    """
    policy = current_policy()
    if broken := policy.broken("features"):
        raise ConfigError.joined(list(broken.values()))
    if not policy.features:
        raise policy.none_valid("features")
    return ordered(policy.features.values())


def view_named(name: str) -> FeatureView:
    """The view called ``name``.

    Raises:
        ConfigError: there is no such view; the message lists those there are.
    """
    views = feature_views()
    for view in views:
        if view.name == name:
            return view
    raise ConfigError(
        f"There is no feature view {name!r}.",
        field="feature view",
        value=name,
        remedy=f"Expected one of: {', '.join(view.name for view in views)}.",
    )


def more_tables() -> tuple[str, ...]:
    """Raw tables beyond :data:`FEATURE_TABLES` that the configured features are computed from.

    Raises:
        ConfigError: a file of ``config/features`` is wrong.
    """
    return tuple(table for table in columns_read(feature_views()) if table not in FEATURE_TABLES)
