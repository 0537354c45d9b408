"""Files that people hand over: found, recognised, read as text by the declared mapping, checked.

Here belongs what happens before a frame of our columns exists. Invented rows are in ``synthetic``, what becomes of
delivered ones in ``loading``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import pandas as pd

#: Raw tables by name (``e2i_dagster.tables.RAW_TABLES``).
Tables: TypeAlias = Mapping[str, pd.DataFrame]

__all__ = ["Tables"]
