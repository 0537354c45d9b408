#!/usr/bin/env bash
# DuckDB 2.0.0: a Parquet column of type timestamp[ns, UTC], as pandas 2 writes them, is read as
# TIMESTAMPTZ_NS, and most functions of moments have no overload for it: epoch_us, epoch_ms, epoch, date_trunc,
# year, date_part and the addition of an interval end in a Binder Error. The same moment written in microseconds
# works in all of them.
#
# Expected: a statement over a column of moments gives the same answer whatever their unit in the file is.
# Seen: "No function matches the given name and argument types 'epoch_us(TIMESTAMPTZ_NS)'"; a cast of the column
# to TIMESTAMPTZ before the function helps, and epoch_ns and casts to DATE work without one.
#
# Installs the pinned packages into a temporary folder; ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "duckdb==2.0.0" "pyarrow==25.0.1"
venv/bin/python - <<'PYTHON'
import datetime as dt
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

MOMENT = dt.datetime(2024, 2, 10, 8, tzinfo=dt.timezone.utc)
FAIL = ["epoch_us(moment)", "epoch_ms(moment)", "epoch(moment)", "date_trunc('month', moment)", "year(moment)",
        "date_part('year', moment)", "moment + INTERVAL 1 DAY"]
WORK = ["epoch_ns(moment)", "moment::DATE", "epoch_us(moment::TIMESTAMPTZ)"]
print("duckdb", duckdb.__version__)
connection = duckdb.connect()
connection.execute("SET TimeZone = 'UTC'")
changed = []
for unit in ("us", "ns"):
    file = f"{unit}.parquet"
    pq.write_table(pa.table({"moment": pa.array([MOMENT], pa.timestamp(unit, "UTC"))}), file)
    print(unit, "is read as", connection.execute(f"SELECT typeof(moment) FROM '{file}'").fetchall()[0][0])
    for expression in FAIL + WORK:
        try:
            said = str(connection.execute(f"SELECT ({expression})::VARCHAR FROM '{file}'").fetchall()[0][0])
            failed = False
        except duckdb.BinderException as error:
            said, failed = str(error).splitlines()[0], True
        print(f"  {expression}: {said}")
        if failed != (unit == "ns" and expression in FAIL):
            changed.append(f"{unit} {expression}")
if changed:
    sys.exit(f"changed: {', '.join(changed)}")
print("as described")
PYTHON
