"""An evaluation patient by patient, in plain Python with None for unknown, of the whole cohort language."""

import itertools
from datetime import date, timedelta

OPEN = date(9000, 1, 1)


def norm(code):
    return code.strip().replace(".", "").upper()


def field_truth(c, value):
    if value is None:
        return None
    o = c.operator
    if c.code_system is not None:
        v = norm(value)

        def hit(x):
            if o == "contains":
                return norm(x.rstrip("*")) in v
            if x.endswith("*") or c.descendants:
                return v.startswith(norm(x.rstrip("*")))
            return v == norm(x)

        t = any(hit(x) for x in c.values)
        return (not t) if o in ("!=", "not_in") else t
    w = c.value
    return {
        "==": lambda: value == w,
        "!=": lambda: value != w,
        ">": lambda: value > w,
        ">=": lambda: value >= w,
        "<": lambda: value < w,
        "<=": lambda: value <= w,
        "in": lambda: value in w,
        "not_in": lambda: value not in w,
        "between": lambda: w[0] <= value <= w[1],
        "contains": lambda: w in value,
    }[o]()


def matching(pattern, events):
    return [
        e
        for e in events
        if e["event_date"] is not None
        # Events with one code each have it in ``code``, whatever its system.
        and all(field_truth(c, e.get(c.field, e.get("code"))) for c in pattern.conditions)
    ]


def event_truth(c, index, span, events, covered, lookback, followup):
    """``covered``: first and last day of the data or None, and what lies between uncovered.

    ``lookback``, ``followup``: days the definition needs.
    """
    if index is None:
        return None
    data_start, data_end, holes = covered

    def kept(first, last):
        whole = all(last < a or first > b for a, b in holes)
        return (
            whole and (data_start is None or first >= data_start) and (data_end is None or last <= data_end)
        )

    def seen_from(first, last):
        return span is not None and span[0] <= first and last <= span[1] and kept(first, last)

    a, b = c.within
    lo = date.min if a is None else index + timedelta(a)
    hi = date.max if b is None else index + timedelta(b)
    # An open end goes as far as observation does; it takes the definition's days on that side to say no.
    observed = seen_from(
        index - timedelta(lookback) if a is None else lo, index + timedelta(followup) if b is None else hi
    )
    m = matching(c, events)
    if c.gap_days is not None:
        days = sorted({e["event_date"] for e in m if lo <= e["event_date"] <= hi})
        points = [lo - timedelta(1), *days, hi + timedelta(1)]
        holds = any((y - x).days - 1 > c.gap_days for x, y in itertools.pairwise(points))
        return holds if observed or not holds else None
    if c.occurrence != "any":
        ds = [e["event_date"] for e in m]
        seen = None if not ds else min(ds) if c.occurrence == "first" else max(ds)
        first = c.occurrence == "first"
        possible = {0, 1}
        if seen is not None and (seen < lo if first else seen > hi):
            possible = {0}
        elif seen is not None and lo <= seen <= hi:
            before, after = seen - timedelta(lookback), seen + timedelta(followup)
            if first and span is not None and span[0] <= before and kept(before, seen):
                possible = {1}
            if not first and span is not None and after <= span[1] and kept(seen, after):
                possible = {1}
        elif observed:
            possible = {0}
        answers = {n >= c.at_least and (c.at_most is None or n <= c.at_most) for n in possible}
        return answers.pop() if len(answers) == 1 else None
    if c.distinct:
        count = len({e[c.distinct] for e in m if lo <= e["event_date"] <= hi and e[c.distinct] is not None})
    else:
        count = sum(lo <= e["event_date"] <= hi for e in m)
    holds = count >= c.at_least and (c.at_most is None or count <= c.at_most)
    # What was not seen can only add to the count.
    could_rise = count < c.at_least if c.at_most is None else count <= c.at_most
    return None if could_rise and not observed else holds


def truth(c, row, index, span, events, *known):
    if hasattr(c, "members"):
        ts = [truth(m, row, index, span, events, *known) for m in c.members]
        yes, maybe = sum(t is True for t in ts), sum(t is None for t in ts)
        return True if yes >= c.needed else (None if yes + maybe >= c.needed else False)
    if hasattr(c, "within"):
        return event_truth(c, index, span, events, *known)
    return field_truth(c, row[c.field])


def spans(periods, gap, data_end):
    # A period without an end goes on until the end of the data, where one is known.
    dated = [(p["start_date"], p["end_date"] or data_end or OPEN) for p in periods if p["start_date"]]
    days = sorted((start, end) for start, end in dated if start <= end)
    out = []
    for s, e in days:
        if out and (s - out[-1][1]).days - 1 <= gap:
            out[-1][1] = max(out[-1][1], e)
        else:
            out.append([s, e])
    return out


def evaluate(d, rows, events, periods, data_end, data_start=None, holes=()):  # noqa: PLR0912
    """{(journey, index): [failed rule names]}, {..: [unknown rule names]}, {...: followup_end}."""
    t = d.temporal_requirements
    need = t.followup_days if t.followup == "require" else 0
    res = []
    for row in rows:
        mine = [
            e
            for e in events
            if e["patient_id"] == row["patient_id"]
            and e["event_date"] is not None
            and (data_start is None or e["event_date"] >= data_start)
            and (data_end is None or e["event_date"] <= data_end)
        ]
        if d.index is None:
            idx = [row[t.index_date_field]]
        else:
            ds = sorted({e["event_date"] for e in matching(d.index, mine)})
            if d.index.after:
                start = row[d.index.after]
                ds = [] if start is None else [x for x in ds if x >= start + timedelta(d.index.after_days)]
            idx = (
                ds if d.index.occurrence == "every" else ds[:1] if d.index.occurrence == "first" else ds[-1:]
            ) or [None]
        for index in idx:
            r = dict(row)
            if periods is None:
                first, last = row["first_observation_date"], row["last_observation_date"]
            else:
                hold = [
                    s
                    for s in spans(
                        [p for p in periods if p["patient_id"] == row["patient_id"]],
                        d.observation.allowed_gap_days,
                        data_end,
                    )
                    if index is not None and s[0] <= index <= s[1]
                ]
                first, last = hold[0] if hold else (None, None)
            span = (first, last) if first is not None and last is not None else None
            for name, der in d.derived.items():
                born = row[der.years_since]
                if index is None or born is None:
                    r[name] = None
                elif isinstance(born, (int, float)):
                    r[name] = index.year - born
                else:
                    r[name] = index.year - born.year - ((index.month, index.day) < (born.month, born.day))
            failed, unknown = [], []
            for rule in d.rules:
                if rule.criterion is None:
                    continue
                covered = (data_start, data_end, holes)
                x = truth(rule.criterion, r, index, span, mine, covered, t.lookback_days, need)
                if x is None:
                    unknown.append(rule.name)
                    if rule.on_unknown == "exclude":
                        failed.append(rule.name)
                elif x != (rule.side == "inclusion"):
                    failed.append(rule.name)
            if index is None:
                failed.append("index_date")
                unknown.append("index_date")
            if index is None or first is None:
                unknown.append("lookback")
            if index is None or last is None:
                unknown.append("followup")
            if index is None or first is None or (index - first).days < t.lookback_days:
                failed.append("lookback")
            elif (data_start is not None and index - timedelta(t.lookback_days) < data_start) or any(
                index - timedelta(t.lookback_days) <= b and index >= a for a, b in holes
            ):
                failed.append("lookback")
                unknown.append("lookback")
            openw = (
                t.followup == "require"
                and data_end is not None
                and index is not None
                and index + timedelta(need) > data_end
            )
            if index is None or last is None:
                failed.append("followup")
            elif openw:
                if last < index or index > data_end:
                    failed.append("followup")
            elif (last - index).days < need or (
                t.followup != "require" and data_end is not None and index > data_end
            ):
                failed.append("followup")
            reached = index is not None and any(index <= b and index + timedelta(need) >= a for a, b in holes)
            if reached and "followup" not in failed:
                failed.append("followup")
                unknown.append("followup")
            if openw:
                failed.append("followup_pending")
            end = last if data_end is None or last is None else min(last, data_end)
            end = None if end == OPEN else end
            for hole, _ in reversed(holes):
                if index is not None and index < hole and (end or OPEN) >= hole:
                    end = hole - timedelta(1)
            res.append([row["patient_id"], row["patient_journey_id"], index, failed, unknown, end])
    if d.journeys != "every":
        taken = set()
        for x in sorted(res, key=lambda x: (x[2] or date.max, x[1])):
            cand = set(x[3]) <= {"followup_pending"} if d.journeys == "first_eligible" else x[2] is not None
            if cand:
                if x[0] in taken:
                    x[3].append("one_index_journey")
                taken.add(x[0])
    return res
