"""The Feast objects of one scope, pinned to the applied feature files, for Feast's command line."""

import os
from pathlib import Path

from e2i_dagster.features.snapshots import FeatureFiles
from e2i_dagster.features.store import feast_objects

files = FeatureFiles.model_validate_json(Path(os.environ["E2I_FEAST_FILES"]).read_text(encoding="utf-8"))

# Feast looks for its objects among the names of this module.
globals().update(
    {
        f"{type(item).__name__}_{item.name}": item
        for item in feast_objects(os.environ["E2I_FEAST_PROJECT"], files)
    }
)
