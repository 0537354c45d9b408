#!/usr/bin/env bash
# Narwhals 2.28.0 over DuckDB 2.0.0: the difference of two columns of type TIMESTAMPTZ, in minutes, depends on the
# time zone of the session. Between noon UTC on 2024-01-01 and noon UTC on 2024-07-01 lie 262,080 minutes; where the
# session's zone changed its clock in between, `(col("end") - col("begin")).dt.total_minutes()` gives 262,140, and a
# comparison of the difference with `timedelta(days=182)` says longer. The same expression over pandas gives 262,080
# and says no. DuckDB subtracts the local readings of the two moments into an interval of days and hours, which
# Narwhals takes for elapsed time.
#
# Expected: one expression gives one answer on every backend; two moments are as far apart as they are.
# Seen: 262,140 minutes and "longer" in Europe/London and America/New_York, 262,080 in UTC and with pandas. `epoch`
# of either end, subtracted, gives 262,080 in every zone.
#
# Installs the pinned packages into a temporary folder; ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "narwhals==2.28.0" "duckdb==2.0.0" "pandas==2.3.3" "pytz==2026.6" "pyarrow==25.0.1"
venv/bin/python - <<'PYTHON'
import datetime as dt
import sys

import duckdb
import narwhals as nw
import pandas as pd

BEGIN, END = "2024-01-01 12:00:00+00", "2024-07-01 12:00:00+00"
elapsed = nw.col("ends") - nw.col("begins")
asked = [
    elapsed.dt.total_minutes().alias("minutes"),
    (elapsed > dt.timedelta(days=182)).alias("longer"),
]

found = {}
frame = pd.DataFrame({"begins": [pd.Timestamp(BEGIN)], "ends": [pd.Timestamp(END)]})
found["pandas"] = tuple(nw.from_native(frame).select(*asked).rows()[0])
connection = duckdb.connect()
for zone in ("UTC", "Europe/London", "America/New_York"):
    connection.execute(f"SET TimeZone = '{zone}'")
    relation = connection.sql(f"SELECT TIMESTAMPTZ '{BEGIN}' AS begins, TIMESTAMPTZ '{END}' AS ends")
    found[f"duckdb, {zone}"] = nw.from_native(relation).select(*asked).to_native().fetchall()[0]
    seconds = relation.project("epoch(ends) - epoch(begins)").fetchall()[0][0]
    if seconds != 262_080 * 60:
        sys.exit(f"changed: epochs differ by {seconds} seconds in {zone}")

print("narwhals", nw.__version__, "duckdb", duckdb.__version__)
for where, (minutes, longer) in found.items():
    print(f"{where}: {minutes} minutes, longer than 182 days: {longer}")
right, wrong = (262_080, False), (262_140, True)
expected = {"pandas": right, "duckdb, UTC": right, "duckdb, Europe/London": wrong, "duckdb, America/New_York": wrong}
if found != expected:
    sys.exit(f"changed: {found}")
PYTHON
