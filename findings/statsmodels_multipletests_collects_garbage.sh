#!/usr/bin/env bash
# statsmodels 0.15.0: multipletests(..., method="holm") runs a full garbage collection in each call, also for one p-value.
#
# Expected: the adjustment of one p-value costs some microseconds, whatever else lives in the process, as the other
# methods of the same function do (bonferroni, fdr_bh).
# Seen: one collection of the oldest generation in each call of method="holm" and none of the others, so that the cost
# grows with the objects of the whole process: with 2,000,000 small lists alive, 1,000 times that of bonferroni and
# more. A simulation of 400 analyses spent 64 of its 66 seconds there.
#
# Collections are counted by gc.callbacks; times are printed, the verdict is the count.
#
# Installs the pinned packages into a temporary folder; ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "statsmodels==0.15.0"
venv/bin/python -W ignore - <<'PYTHON'
import gc
import sys
import time

import statsmodels
from statsmodels.stats.multitest import multipletests

CALLS = 5
alive = [[number] for number in range(2_000_000)]
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]) if phase == "stop" else None)
gc.disable()  # what is counted is asked for by the function itself

print("statsmodels", statsmodels.__version__)
counted = {}
for method in ("bonferroni", "fdr_bh", "holm"):
    multipletests([0.03], method=method)
    collections.clear()
    started = time.perf_counter()
    for _ in range(CALLS):
        multipletests([0.03], method=method)
    each = (time.perf_counter() - started) / CALLS
    counted[method] = collections.count(2)
    print(f"{method}: {counted[method]} full collections in {CALLS} calls, {each * 1e6:,.0f} microseconds a call")
if counted != {"bonferroni": 0, "fdr_bh": 0, "holm": CALLS}:
    sys.exit(f"changed: {counted}")
print("as described")
PYTHON
