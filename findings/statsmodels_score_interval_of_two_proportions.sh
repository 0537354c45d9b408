#!/usr/bin/env bash
# statsmodels 0.15.0: the score interval for the difference of two proportions (Miettinen and Nurminen 1985),
# confint_proportions_2indep(..., compare="diff", method="score"), is wrong, or does not come at all.
#
# Expected: the limits are the differences at which the score statistic, with the two proportions that maximise the
# likelihood under that difference, is 1.96.
# Seen: ValueError "f(a) and f(b) must have different signs" for 1/50 v 0/450, 9/10 v 3/10, 10/10 v 0/20, 5/56 v 0/29,
# with and without correction; and for 56/70 v 48/80 the interval 0.0531 to 0.3436 where 0.0533 to 0.3377 is right
# (with correction 0.0526 to 0.3440, right 0.0528 to 0.3382). The proportions that score_test_proportions_2indep calls
# constrained do not maximise the likelihood: under a difference of 0.3436 others are more likely by 1.15 in log
# likelihood.
#
# The right limits are found here without any formula for those proportions, by search over a grid and bisection.
# The search gives 0.7156 to 1 for 10/10 v 0/20, as the tests of the R package cicalc, which compare with the paper.
#
# Installs the pinned packages into a temporary folder; ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "statsmodels==0.15.0"
venv/bin/python -W ignore - <<'PYTHON'
import sys

import numpy as np
import statsmodels
from statsmodels.stats.proportion import confint_proportions_2indep, score_test_proportions_2indep

Z = 1.959963984540054


def log_likelihood(p1, p2, x1, n1, x2, n2):
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [
            np.where(count > 0, count * np.log(share), 0.0)
            for count, share in ((x1, p1), (n1 - x1, 1 - p1), (x2, p2), (n2 - x2, 1 - p2))
        ]
    return sum(parts)


def most_likely(difference, x1, n1, x2, n2):
    """The two proportions of that difference with the greatest likelihood, by a grid that narrows six times."""
    low, high = max(0.0, -difference), min(1.0, 1 - difference)
    for _ in range(6):
        p2 = np.linspace(low, high, 4001)
        best = int(np.nanargmax(log_likelihood(p2 + difference, p2, x1, n1, x2, n2)))
        low, high = p2[max(best - 1, 0)], p2[min(best + 1, len(p2) - 1)]
    return p2[best] + difference, p2[best]


def statistic(difference, x1, n1, x2, n2, correction):
    p1, p2 = most_likely(difference, x1, n1, x2, n2)
    variance = p1 * (1 - p1) / n1 + p2 * (1 - p2) / n2
    variance *= (n1 + n2) / (n1 + n2 - 1) if correction else 1.0
    return (x1 / n1 - x2 / n2 - difference) / np.sqrt(variance)


def limits(x1, n1, x2, n2, correction):
    found = []
    for end in (-1 + 1e-9, 1 - 1e-9):
        inside, outside = x1 / n1 - x2 / n2, end
        for _ in range(50):
            middle = (inside + outside) / 2
            if abs(statistic(middle, x1, n1, x2, n2, correction)) <= Z:
                inside = middle
            else:
                outside = middle
        found.append(round(float(inside), 4))
    return tuple(found)


def theirs(table, correction):
    try:
        found = confint_proportions_2indep(*table, compare="diff", method="score", correction=correction)
    except ValueError as error:
        return f"ValueError: {error}"
    return tuple(round(float(limit), 4) for limit in found)


SIGNS = "ValueError: f(a) and f(b) must have different signs"
SEEN = {
    ((56, 70, 48, 80), False): ((0.0531, 0.3436), (0.0533, 0.3377)),
    ((56, 70, 48, 80), True): ((0.0526, 0.344), (0.0528, 0.3382)),
    ((1, 50, 0, 450), False): (SIGNS, (0.0035, 0.105)),
    ((1, 50, 0, 450), True): (SIGNS, (0.0035, 0.1051)),
    ((9, 10, 3, 10), False): (SIGNS, (0.1821, 0.837)),
    ((10, 10, 0, 20), True): (SIGNS, (0.7156, 1.0)),
    ((5, 56, 0, 29), False): (SIGNS, (-0.0313, 0.1926)),
}
print("statsmodels", statsmodels.__version__)
changed = []
for (table, correction), (described, right) in SEEN.items():
    found, searched = theirs(table, correction), limits(*table, correction)
    print(f"{table[0]}/{table[1]} v {table[2]}/{table[3]}, correction {correction}: {found}; by search {searched}")
    if found != described or searched != right:
        changed.append(f"{table} {correction}")
table, difference = (56, 70, 48, 80), 0.3436
result = score_test_proportions_2indep(*table, value=difference, correction=False)
given = (float(result.prop1_null), float(result.prop2_null))
better = tuple(map(float, most_likely(difference, *table)))
gain = float(log_likelihood(*better, *table) - log_likelihood(*given, *table))
print(f"under {difference}: constrained {given[0]:.4f}, {given[1]:.4f}; more likely by {gain:.2f}: {better[0]:.4f}, {better[1]:.4f}")
if round(gain, 2) != 1.15:
    changed.append("constrained proportions")
if changed:
    sys.exit(f"changed: {', '.join(changed)}")
print("as described")
PYTHON
