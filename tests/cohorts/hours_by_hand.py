"""Windows in hours evaluated patient by patient, in plain Python with None for unknown."""

from datetime import datetime, time, timedelta

FIRST, LAST = time(0), time(23, 59, 59)


def moments(event):
    """Earliest and latest moment at which an event can have been."""
    day, at = event["event_date"], event["event_time"]
    if at is not None and at.date() == day:
        return at, at
    return datetime.combine(day, FIRST), datetime.combine(day, LAST)


def hours_truth(c, index, index_type, span, events, lookback=0):
    """``index``: day; ``events`` of the patient; ``span``: first and last day observed."""
    of_index = [moments(e) for e in events if e["event_date"] == index and e["event_type"] == index_type]
    if any(a != b for a, b in of_index):
        return None
    start = min(a for a, _ in of_index)
    first, last = c.hours
    low = None if first is None else start + timedelta(hours=first)
    high = None if last is None else start + timedelta(hours=last)
    since = index - timedelta(lookback) if low is None else low.date()
    until = index if high is None else high.date()
    end = None
    if c.until is not None:
        ends = [moments(e) for e in events if e["event_type"] in c.until.event]
        sure = [a for a, b in ends if a == b and a > start]
        unclear = [a.date() for a, b in ends if a != b and b > start]
        end = min(sure, default=None)
        if end is None and high is None:
            return None
        if end is not None and (high is None or end.date() < until):
            until = end.date()
        since = min(since, index)
        if any(day <= until for day in unclear):
            return None
    observed = span is not None and span[0] <= since and until <= span[1]
    if c.until is not None and not observed:
        return None

    def after(moment):
        return low is None or (moment > low if c.ends[0] == "(" else moment >= low)

    def before(moment):
        bounds = [bound for bound in (high, end) if bound is not None]
        return all(moment < bound if c.ends[1] == ")" else moment <= bound for bound in bounds)

    mine = [moments(e) for e in events if e["event_type"] in c.event]
    count = sum(after(a) and before(b) for a, b in mine)
    most = sum(after(b) and before(a) for a, b in mine)
    # Whichever number it is, and more where events may have been missed.
    numbers = range(count, most + 1) if observed else range(count, most + 50)
    answers = {n >= c.at_least and (c.at_most is None or n <= c.at_most) for n in numbers}
    return answers.pop() if len(answers) == 1 else None
