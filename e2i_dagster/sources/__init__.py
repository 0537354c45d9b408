"""Where raw tables come from: synthetic processes with known effects, and files.

``synthetic`` draws the tables, ``truth`` states what is true of them, ``files`` reads deliveries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import pandas as pd

#: Raw tables by name (``e2i_dagster.tables.RAW_TABLES``).
Tables: TypeAlias = Mapping[str, pd.DataFrame]

__all__ = ["Tables"]
