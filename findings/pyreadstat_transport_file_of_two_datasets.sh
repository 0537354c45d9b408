#!/usr/bin/env bash
# pyreadstat 1.3.7: a SAS transport file (version 5) of two datasets is read as one, without a word.
#
# A transport file may hold several datasets: behind the rows of the first, on a border of 80 bytes, stands the
# member header of the next (SAS Technical Support note TS-140, "The Record Layout of a SAS Version 5 or 6 Data Set in
# SAS Transport Format"). Suppliers deliver trials and surveys so.
#
# Expected: the two rows of the first dataset, and a way to ask for the second or a word that there is one.
# Seen: read_xport gives 89 rows under the name and the columns of the first dataset: its two, the padding, and the headers
# and rows of the second cut into pieces as if they were rows of the first (texts such as "HE", numbers such as
# 4.27 where an age stands). metadata.number_rows says 89, too. With row_limit=2 it gives the right two rows.
#
# Both files are written by pyreadstat itself; they are joined where the member header of the second begins.
# Installs the pinned packages into a temporary folder; ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "pyreadstat==1.3.7" "pandas==2.3.3"
venv/bin/python - <<'PYTHON'
import sys
from pathlib import Path

import pandas as pd
import pyreadstat

subjects = pd.DataFrame({"USUBJID": ["S1", "S2"], "AGE": [34.0, 41.0]})
events = pd.DataFrame({"USUBJID": ["S1", "S1", "S2"], "SEX": ["F", "F", "M"]})
pyreadstat.write_xport(subjects, "dm.xpt", table_name="DM", file_format_version=5)
pyreadstat.write_xport(events, "ae.xpt", table_name="AE", file_format_version=5)
first, second = Path("dm.xpt").read_bytes(), Path("ae.xpt").read_bytes()
assert len(first) % 80 == 0
member = second.index(b"HEADER RECORD*******MEMBER  HEADER RECORD")
Path("both.xpt").write_bytes(first + second[member:])

alone, _ = pyreadstat.read_xport("dm.xpt")
rows, metadata = pyreadstat.read_xport("both.xpt")
limited, _ = pyreadstat.read_xport("both.xpt", row_limit=2)
print("pyreadstat", pyreadstat.__version__)
print(f"first dataset alone: {len(alone)} rows")
print(f"both in one file: {len(rows)} rows of {metadata.table_name}, number_rows {metadata.number_rows}")
print(rows.iloc[[0, 1, 8, 9]].to_string())
described = (
    len(alone) == 2
    and len(rows) == metadata.number_rows == 89
    and metadata.table_name == "DM"
    and list(rows["USUBJID"][8:10]) == ["HE", "OR"]
    and limited.equals(alone)
)
if not described:
    sys.exit("changed")
print("as described")
PYTHON
