"""Triggers: against published calendars, clocks and bands, and against the rules that they stand for."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import product
from math import inf, sqrt
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import CASH, random_table

from equipoise import InputError, Rebalancer
from equipoise.constraints import CashFloor, DriftBand, Rule
from equipoise.optimizer import (
    Calendar,
    CovarianceRisk,
    Drift,
    Due,
    Policy,
    Portfolio,
    Problem,
    ProportionalCost,
    Status,
    Trigger,
)

NEW_YORK, LONDON, SAO_PAULO = "America/New_York", "Europe/London", "America/Sao_Paulo"


def problem(
    before: dict[str, float], target: dict[str, float], *rules: Rule, label: Any = None, risk: Any = None
) -> Problem:
    """Holdings worth 1000 with these weights and targets; the cash is the rest."""
    assets = sorted(before)
    table = pd.DataFrame(
        {
            "quantity": [*(1000 * before[a] for a in assets), 1000 * (1 - sum(before.values()))],
            "price": 1.0,
            "target": [*(target[a] for a in assets), 1 - sum(target.values())],
            "class": [*((label or {}).get(a) for a in assets), None],
        },
        index=[*assets, CASH],
    )
    return Policy(risk=risk, constraints=rules).problem(Portfolio.from_table(table, CASH))


SOME = problem({"A": 0.6, "B": 0.4}, {"A": 0.5, "B": 0.5}, DriftBand(absolute=0.05))


def at(time: str, zone: str) -> pd.Timestamp:
    return pd.Timestamp(time).tz_localize(zone)


def check(due: Due) -> Due:
    """What holds for every answer."""
    assert bool(due) is due.fired
    assert due.distance == due.threshold - due.value
    assert due.reason
    for part in due.parts:
        check(part)
    return due


# ---- the calendar: dates ----------------------------------------------------------------------------------

# The closures of the New York Stock Exchange in 2024 (its list of holidays).
NYSE_2024 = ["2024-01-01", "2024-01-15", "2024-02-19", "2024-03-29", "2024-05-27", "2024-06-19", "2024-07-04"]
NYSE_2024 += ["2024-09-02", "2024-11-28", "2024-12-25"]
# Third Fridays of 2024, when US options on equities expire (OCC's calendar of expirations).
THIRD_FRIDAYS = ["01-19", "02-16", "03-15", "04-19", "05-17", "06-21", "07-19", "08-16", "09-20", "10-18"]
THIRD_FRIDAYS += ["11-15", "12-20"]
FIRST_SESSIONS = ["01-02", "02-01", "03-01", "04-01", "05-01", "06-03", "07-01", "08-01", "09-03", "10-01"]
FIRST_SESSIONS += ["11-01", "12-02"]


@pytest.mark.parametrize(
    ("every", "dates"),
    [
        ("1MS", [f"{month:02}-01" for month in range(1, 13)]),
        ("QS", ["01-01", "04-01", "07-01", "10-01"]),
        (
            "1ME",
            [
                *[
                    "01-31",
                    "02-29",
                    "03-31",
                    "04-30",
                    "05-31",
                    "06-30",
                    "07-31",
                    "08-31",
                    "09-30",
                    "10-31",
                    "11-30",
                    "12-31",
                ]
            ],
        ),
        ("2QS", ["04-01", "10-01"]),
        ("WOM-3FRI", THIRD_FRIDAYS),
        (pd.offsets.CBMonthBegin(holidays=NYSE_2024), FIRST_SESSIONS),
        (pd.offsets.Easter(), ["03-31"]),
        ("YS-FEB", ["02-01"]),
    ],
)
@pytest.mark.parametrize("zone", [None, NEW_YORK])
def test_a_year_of_dates(every: Any, dates: list[str], zone: str | None) -> None:
    """Asked three times a day, it fires once for each date, in the first hour after midnight."""
    calendar, last, fired = Calendar(every), pd.Timestamp("2023-12-31 17:00", tz=zone), []
    for now in pd.date_range("2024-01-01 00:00", "2024-12-31 23:00", freq="8h", tz=zone):
        if check(calendar.due(SOME, now=now, last=last)):
            fired.append(now)
            last = now + pd.Timedelta("10min")
    assert [f"{now:%m-%d}" for now in fired] == dates
    # New York asked every 8 hours is asked at 01:00 (and so on) in summer
    assert all(now.hour <= 1 for now in fired)


def test_business_days_and_holidays() -> None:
    sessions = pd.offsets.CustomBusinessDay(holidays=NYSE_2024)
    friday = "2024-05-24T16:00"  # before Memorial Day
    assert not Calendar("B").due(SOME, now="2024-05-26T23:59", last=friday)
    assert Calendar("B").due(SOME, now="2024-05-27", last=friday)
    assert not Calendar(sessions).due(SOME, now="2024-05-27T23:59", last=friday)
    assert Calendar(sessions).due(SOME, now="2024-05-28", last=friday)
    # The exchange had 252 sessions in 2024; after each of them comes one other.
    calendar, last, count = Calendar(sessions), pd.Timestamp("2023-12-29"), 0
    for now in pd.date_range("2024-01-01", "2024-12-31"):
        if calendar.due(SOME, now=now, last=last):
            last, count = now, count + 1
    assert count == 252


def test_a_date_fires_once_and_from_its_first_moment() -> None:
    calendar = Calendar("1MS")
    before, on = "2024-01-31T23:59:59.999999", "2024-02-01"
    assert not calendar.due(SOME, now=before, last="2024-01-15T10:30")
    due = check(calendar.due(SOME, now=on, last="2024-01-15T10:30"))
    assert due
    assert (due.value, due.threshold, due.distance, due.unit) == (16.5625, 16.5625, 0.0, "days")
    assert due.reason == "due since 2024-02-01 00:00:00 (last: 2024-01-15 10:30:00)"
    # (last, now]: a rebalance on the date itself has served it.
    assert not calendar.due(SOME, now="2024-02-01T09:00", last=on)
    assert not calendar.due(SOME, now=on, last=on)
    waiting = check(calendar.due(SOME, now="2024-02-01T09:00", last="2024-02-01T08:00"))
    assert waiting.distance == pytest.approx(29 - 9 / 24, abs=1e-12)  # February of a leap year
    assert "next due at 2024-03-01 00:00:00, in 28 days 15:00:00" in waiting.reason


@pytest.mark.parametrize(
    ("every", "last", "then"),
    [
        ("1ME", "2024-02-10", "2024-02-29"),
        ("1ME", "2023-02-10", "2023-02-28"),
        ("1D", "2024-02-28T12:00", "2024-02-29T12:00"),
        ("1D", "2023-02-28T12:00", "2023-03-01T12:00"),
        ("7D", "2024-02-26T12:00", "2024-03-04T12:00"),
        ("1MS", "2024-02-29", "2024-03-01"),
        ("2MS", "2024-01-15", "2024-03-01"),  # the second month start after it
        ("W-FRI", "2024-03-29T16:00", "2024-04-05"),
        ("2W-FRI", "2024-03-29T16:00", "2024-04-12"),
        (pd.offsets.Week(), "2024-03-29T16:00", "2024-04-05T16:00"),  # no weekday: an interval
        (pd.DateOffset(months=1), "2024-01-31T09:00", "2024-02-29T09:00"),
        (pd.DateOffset(years=1), "2024-02-29", "2025-02-28"),
        (pd.offsets.BusinessHour(2), "2024-03-29T16:00", "2024-04-01T10:00"),  # 9 to 17; over a weekend
        ("90min", "2024-02-28T23:00", "2024-02-29T00:30"),
    ],
)
def test_the_next_time(every: Any, last: str, then: str) -> None:
    moment = pd.Timestamp(then)
    assert Calendar(every).due(SOME, now=moment, last=last)
    assert not Calendar(every).due(SOME, now=moment - pd.Timedelta("1us"), last=last)


def test_never_rebalanced_is_due_at_once() -> None:
    due = check(Calendar("1MS").due(SOME, now="2024-01-15"))
    assert (due.fired, due.value, due.threshold, due.distance) == (True, inf, 0.0, -inf)
    assert "never" in due.reason


# ---- the calendar: clocks ---------------------------------------------------------------------------------

# Changes of the clock in the IANA database. New York: 2024-03-10 02:00 EST to 03:00 EDT and 2024-11-03 02:00
# EDT to 01:00 EST. London: 2024-03-31 01:00 GMT to 02:00 BST and 2024-10-27 02:00 BST to 01:00 GMT. São Paulo:
# 2018-11-04 00:00 to 01:00. The right column is in UTC.
CLOCKS = [
    ("1D", NEW_YORK, "2024-03-09 16:00", "2024-03-10 20:00"),  # 23 hours later
    ("24h", NEW_YORK, "2024-03-09 16:00", "2024-03-10 21:00"),
    ("1D", NEW_YORK, "2024-11-02 16:00", "2024-11-03 21:00"),  # 25 hours later
    ("24h", NEW_YORK, "2024-11-02 16:00", "2024-11-03 20:00"),
    ("1D", NEW_YORK, "2024-03-09 02:30", "2024-03-10 07:00"),  # 02:30 is skipped: 03:00 EDT
    ("1D", NEW_YORK, "2024-11-02 01:30", "2024-11-03 05:30"),  # 01:30 comes twice: the first, EDT
    ("7D", NEW_YORK, "2024-03-08 09:30", "2024-03-15 13:30"),
    ("12h", NEW_YORK, "2024-11-02 20:00", "2024-11-03 12:00"),
    ("1MS", NEW_YORK, "2024-10-15 12:00", "2024-11-01 04:00"),
    ("1MS", NEW_YORK, "2024-11-15 12:00", "2024-12-01 05:00"),
    ("B", NEW_YORK, "2024-11-01 16:00", "2024-11-04 05:00"),
    ("1D", LONDON, "2024-03-30 16:00", "2024-03-31 15:00"),
    ("1D", LONDON, "2024-03-30 01:30", "2024-03-31 01:00"),  # skipped: 02:00 BST
    ("1D", LONDON, "2024-10-26 01:30", "2024-10-27 00:30"),  # twice: the first, BST
    ("12h", LONDON, "2024-03-30 20:00", "2024-03-31 08:00"),
    ("1MS", LONDON, "2024-03-15 12:00", "2024-03-31 23:00"),
    ("1MS", LONDON, "2024-10-15 12:00", "2024-11-01 00:00"),
    ("W-SUN", LONDON, "2024-10-21 12:00", "2024-10-26 23:00"),
    ("W-SUN", SAO_PAULO, "2018-10-30 12:00", "2018-11-04 03:00"),  # its midnight is skipped: 01:00 -02
    ("1D", "UTC", "2024-03-10 02:30", "2024-03-11 02:30"),
]


@pytest.mark.parametrize(("every", "zone", "last", "then"), CLOCKS)
@pytest.mark.parametrize("stated", [True, False])
def test_changes_of_the_clock(every: str, zone: str, last: str, then: str, stated: bool) -> None:
    """With tz= stated the times may come in any zone; without it the zone of `now` is taken."""
    calendar = Calendar(every, tz=zone) if stated else Calendar(every)
    moment = at(then, "UTC") if stated else at(then, "UTC").tz_convert(zone)
    since = at(last, zone).tz_convert("Asia/Tokyo")
    due = check(calendar.due(SOME, now=moment, last=since))
    assert due
    assert due.distance == 0
    assert due.threshold == (moment - since).total_seconds() / 86400
    assert not check(calendar.due(SOME, now=moment - pd.Timedelta("1s"), last=since))


def test_an_interval_that_starts_in_the_doubled_hour_goes_forward() -> None:
    second = pd.Timestamp("2024-11-03 06:40", tz="UTC").tz_convert(NEW_YORK)  # 01:40 EST, after 01:40 EDT
    ten = pd.DateOffset(minutes=10)
    assert not Calendar(ten).due(SOME, now=second, last=second)
    assert Calendar(ten).due(SOME, now=second + pd.Timedelta("10min"), last=second)
    assert Calendar("10min").due(SOME, now=second + pd.Timedelta("10min"), last=second)


#: Which days are dates of the calendar, said without pandas.
DAYS: dict[str, Callable[[date], bool]] = {
    "1MS": lambda d: d.day == 1,
    "QS": lambda d: d.day == 1 and d.month in (1, 4, 7, 10),
    "ME": lambda d: (d + timedelta(1)).day == 1,
    "B": lambda d: d.weekday() < 5,
    "W-WED": lambda d: d.weekday() == 2,
    "WOM-3FRI": lambda d: d.weekday() == 4 and 15 <= d.day <= 21,
    "SMS": lambda d: d.day in (1, 15),
}


@given(
    every=st.sampled_from(sorted(DAYS)),
    zone=st.sampled_from([None, "UTC", NEW_YORK, LONDON, SAO_PAULO, "Australia/Lord_Howe", "Asia/Kathmandu"]),
    last=st.datetimes(datetime(2015, 1, 1), datetime(2030, 1, 1)),
    days=st.one_of(st.floats(0, 5), st.floats(0, 120)),
)
def test_dates_by_the_standard_library(every: str, zone: str | None, last: datetime, days: float) -> None:
    """It fires exactly if the first moment of one of its days is in (last, now]."""
    start, end = last, last + timedelta(days)
    if zone is not None:
        start, end = (time.replace(tzinfo=UTC).astimezone(ZoneInfo(zone)) for time in (start, end))
    span = [start.date() + timedelta(i) for i in range((end.date() - start.date()).days + 1)]
    # The first moment of a day is after the last of the day before; by wall clock that is a change of date.
    expected = any(DAYS[every](day) for day in span if day > start.date())
    assert bool(Calendar(every, tz=zone).due(SOME, now=pd.Timestamp(end), last=pd.Timestamp(start))) is expected


@given(
    hours=st.integers(1, 400),
    start=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
    zone=st.sampled_from([NEW_YORK, LONDON, "UTC"]),
    off=st.sampled_from([-1, 0, 1]),
)
def test_hours_are_hours_whatever_the_clock_shows(hours: int, start: datetime, zone: str, off: int) -> None:
    last = start.replace(tzinfo=UTC)
    now = (last + timedelta(hours=hours, microseconds=off)).astimezone(ZoneInfo(zone))
    assert bool(Calendar(f"{hours}h").due(SOME, now=now, last=last)) is (off >= 0)


@pytest.mark.parametrize(
    "time",
    [
        "2024-02-01T09:00",
        date(2024, 2, 1),
        datetime(2024, 2, 1, 9),
        np.datetime64("2024-02-01T09:00"),
        pd.Timestamp("2024-02-01 09:00"),
    ],
)
def test_forms_of_time(time: Any) -> None:
    assert Calendar("1MS").due(SOME, now=time, last="2024-01-15")
    assert not Calendar("1MS").due(SOME, now="2024-02-10", last=time)


@pytest.mark.parametrize(
    ("make", "column", "words"),
    [
        (lambda: Calendar("fortnightly"), "every", "pandas offset"),
        (lambda: Calendar(""), "every", "pandas offset"),
        (lambda: Calendar(7), "every", "pandas offset"),  # type: ignore[arg-type]
        (lambda: Calendar(timedelta(1)), "every", "pandas offset"),  # type: ignore[arg-type]
        (lambda: Calendar("-1D"), "every", "forward"),
        (lambda: Calendar("0D"), "every", "forward"),
        (lambda: Calendar("1MS", tz="Mars/Olympus"), "tz", "zone"),
        (lambda: Calendar("1MS", tz=""), "tz", "zone"),
        (lambda: Calendar("1MS", tz=-5), "tz", "zone"),  # type: ignore[arg-type]
        (lambda: Calendar("1MS").due(SOME), "now", "clock"),
        (lambda: Calendar("1MS").due(SOME, last="2024-01-01"), "now", "clock"),
        (lambda: Calendar("1MS").due(SOME, now="yesterday"), "now", "date and time"),
        (lambda: Calendar("1MS").due(SOME, now="01/02/2024"), "now", "date and time"),
        (lambda: Calendar("1MS").due(SOME, now=1704067200), "now", "date and time"),
        (lambda: Calendar("1MS").due(SOME, now=pd.NaT), "now", "date and time"),
        (lambda: Calendar("1MS").due(SOME, now="2024-01-01", last=pd.NaT), "last", "date and time"),
        (lambda: Calendar("1MS").due(SOME, now="2024-01-01", last="2024-01-02"), "now", "before last"),
        (lambda: Calendar("1MS").due(SOME, now="2024-02-01", last="2024-01-02T00:00Z"), "now", "no time zone"),
        (lambda: Calendar("1MS").due(SOME, now="2024-02-01T00:00Z", last="2024-01-02"), "last", "no time zone"),
        (lambda: Calendar("1MS", tz=LONDON).due(SOME, now="2024-02-01"), "now", "Europe/London"),
        (lambda: Calendar(pd.DateOffset(day=1)).due(SOME, now="2024-02-09", last="2024-02-05"), "every", "forward"),
    ],
)
def test_calendar_refusals(make: Callable[[], Any], column: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        make()
    assert error.value.column == column


# ---- drift ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "fires"), [(0.5, False), (0.25, False), (0.24, True), (0.75, False), (0.76, True)])
@pytest.mark.parametrize("inside", [0.0, 0.5, 1.0])
def test_relative_tolerance_of_bt(weight: float, fires: bool, inside: float) -> None:
    """The project bt (github.com/pmorissette/bt, MIT), tests/test_algos.py::test_run_if_out_of_bounds:
    two assets with the target 0.5, a relative tolerance of 0.5."""
    band = DriftBand(relative=0.5, inside=inside)
    given = problem({"c1": weight, "c2": 1 - weight}, {"c1": 0.5, "c2": 0.5}, band)
    assert bool(check(Drift().due(given))) is fires
    assert bool(check(Drift(relative=0.5).due(given))) is fires


@pytest.mark.parametrize(
    ("target", "low", "high"), [(0.60, 0.55, 0.65), (0.20, 0.15, 0.25), (0.10, 0.075, 0.125), (0.04, 0.03, 0.05)]
)
def test_five_twenty_five(target: float, low: float, high: float) -> None:
    """Swedroe's 5/25: the lesser of 5 points and a quarter of the target, so 60 % is 55 to 65, 4 % is 3 to 5."""

    def fires(weight: float) -> bool:
        given = problem({"A": weight}, {"A": target}, DriftBand(absolute=0.05, relative=0.25))
        own, rule = Drift(absolute=0.05, relative=0.25).due(given), Drift().due(given)
        assert (own.fired, own.value, own.threshold, own.name) == (rule.fired, rule.value, rule.threshold, "A")
        return bool(check(rule))

    assert [fires(w) for w in (low - 1e-6, low, target, high, high + 1e-6)] == [True, False, False, False, True]


@pytest.mark.parametrize("drift", [0.0199, 0.02, 0.0201, 0.03])
def test_trigger_at_200_destination_at_175(drift: float) -> None:
    """Vanguard's target-date funds (19 December 2024): they trade beyond 200 basis points, back to 175.

    With costs high enough nothing is traded that need not be, so the orders end exactly at the destination.
    """
    table = pd.DataFrame(
        {
            "quantity": [600 + 1000 * drift, 400 - 1000 * drift, 10],
            "price": 1.0,
            "target": [0.6, 0.4, 0.0],
        },
        index=["stocks", "bonds", CASH],
    )
    table.loc[CASH, "quantity"] = 0.0
    rebalancer = Rebalancer(
        cash=CASH,
        costs=[ProportionalCost({"stocks": 0.001, "bonds": 0.001, CASH: 0.0})],
        constraints=[DriftBand(absolute=0.02, inside=0.875), CashFloor(-0.001)],
        aversion=0.001,
        trigger=Drift(),
    )
    due = check(rebalancer.due(table))
    assert due.fired is (drift > 0.02)
    assert due.name in ("stocks", "bonds")
    assert (due.value, due.threshold) == pytest.approx((drift, 0.02), abs=1e-12)
    if due:
        plan = rebalancer.solve(table)
        assert plan.status is Status.OPTIMAL
        after = plan.weights.after
        assert after[["stocks", "bonds"]].to_numpy() == pytest.approx([0.6175, 0.3825], abs=1e-7)


def test_the_edge_itself_does_not_fire() -> None:
    """0.1 + 0.2 is not 0.3 in floating point; a trigger must not fire for that."""
    band = DriftBand(absolute=0.1)
    for target in (0.1, 0.2, 0.3, 0.6, 0.7):
        for sign in (-1, 1):
            edge = problem({"A": round(target + sign * 0.1, 3)}, {"A": target}, band)
            beyond = problem({"A": round(target + sign * 0.1, 3) + sign * 1e-9}, {"A": target}, band)
            assert (Drift().due(edge).fired, Drift().due(beyond).fired) == (False, True)


def test_asymmetric_bands_and_bands_of_some_assets() -> None:
    lopsided = DriftBand(absolute=(0.01, 0.10), assets=["A"])
    target = {"A": 0.4, "B": 0.4}
    for weight, fires, width in ((0.385, True, 0.01), (0.395, False, 0.01), (0.45, False, 0.10), (0.51, True, 0.10)):
        due = check(Drift().due(problem({"A": weight, "B": 0.1}, target, lopsided)))
        assert (due.fired, due.name, due.threshold) == (fires, "A", pytest.approx(width))
    assert Drift().due(problem(target, target, lopsided)).threshold == pytest.approx(0.01)  # the nearer edge


def test_bands_by_label() -> None:
    kind = {"A": "equity", "B": "equity", "C": "gold"}
    target = {"A": 0.3, "B": 0.3, "C": 0.3}
    band = DriftBand(absolute=0.05, by="class")
    swapped = problem({"A": 0.5, "B": 0.1, "C": 0.3}, target, band, label=kind)
    assert not check(Drift().due(swapped))  # the sum has not moved
    drifted = problem({"A": 0.4, "B": 0.26, "C": 0.3}, target, band, label=kind)
    due = check(Drift().due(drifted))
    assert (due.fired, due.name) == (True, "equity")
    assert (due.value, due.threshold) == pytest.approx((0.06, 0.05))
    assert due.reason == "equity at 66% is 1% above its band 55% to 65%, target 60%"
    own = Drift(absolute={"equity": 0.1, "gold": 0.2}, by="class").due(drifted)
    assert (own.fired, own.name, own.threshold) == (False, "equity", pytest.approx(0.1))


def test_several_rules_and_the_worst_of_them() -> None:
    rules = (DriftBand(absolute=0.10), DriftBand(absolute=0.02, by="class"))
    given = problem({"A": 0.49, "B": 0.41}, {"A": 0.4, "B": 0.4}, *rules, label={"A": "x", "B": "y"})
    due = check(Drift().due(given))
    assert (due.fired, due.name) == (True, "x")
    assert due.distance == pytest.approx(-0.07)


def test_the_number_of_those_outside_is_told() -> None:
    given = problem({"A": 0.6, "B": 0.3}, {"A": 0.4, "B": 0.4}, DriftBand(absolute=0.05))
    due = Drift().due(given)
    assert due.reason == "A at 60% is 15% above its band 35% to 45%, target 40% (1 more outside)"


def test_the_cash_only_if_asked_for() -> None:
    before, target = {"A": 0.7}, {"A": 0.9}
    only_cash = {"A": 1.0, CASH: 0.15}
    assert not Drift().due(problem(before, target, DriftBand(absolute=only_cash)))
    due = check(Drift().due(problem(before, target, DriftBand(absolute=only_cash, cash=True))))
    assert (due.fired, due.name) == (True, CASH)


def test_bands_that_bind_nobody() -> None:
    given = problem({"A": 0.7}, {"A": 0.9}, DriftBand(absolute=0.01, by="class"))
    due = check(Drift().due(given))
    assert (due.fired, due.value, due.threshold, due.name) == (False, 0.0, inf, None)


def test_half_the_sum_of_the_drifts() -> None:
    """Drifts of +7, −3 and, in cash, −4 points: what leads back is a one-way turnover of 7."""
    given = problem({"A": 0.57, "B": 0.37}, {"A": 0.5, "B": 0.4})
    due = check(Drift(0.05).due(given))
    assert (due.fired, due.name, due.value) == (True, "A", pytest.approx(0.07, abs=1e-15))
    assert due.reason == "half the sum of the drifts is 7%, above 5%; most of it by A at 57%, target 50%"
    assert not check(Drift(0.07).due(given))  # exactly there
    assert Drift(0.0699).due(given)
    at_target = check(Drift(0.0).due(problem({"A": 0.5}, {"A": 0.5})))
    assert (at_target.fired, at_target.name, at_target.value) == (False, None, 0.0)


def test_tracking_error() -> None:
    """Volatilities of 20 and 10 %, correlation ½; drifts of −10 and +10 points:
    0.1·√(0.04 + 0.01 − 2·½·0.2·0.1) = 0.1·√0.03, all of it by the first."""
    covariance = pd.DataFrame([[0.04, 0.01], [0.01, 0.01]], ["A", "B"], ["A", "B"])
    given = problem({"A": 0.4, "B": 0.6}, {"A": 0.5, "B": 0.5}, risk=CovarianceRisk(covariance))
    due = check(Drift(tracking_error=0.017).due(given))
    assert (due.fired, due.name) == (True, "A")
    assert due.value == pytest.approx(0.1 * sqrt(0.03), rel=1e-12)
    assert not Drift(tracking_error=0.018).due(given)


@pytest.mark.parametrize(
    ("make", "column"),
    [
        (lambda: Drift(-0.01), "total"),
        (lambda: Drift(True), "total"),
        (lambda: Drift(float("nan")), "total"),
        (lambda: Drift("0.05"), "total"),  # type: ignore[arg-type]
        (lambda: Drift(tracking_error=inf), "tracking_error"),
        (lambda: Drift(0.05, tracking_error=0.02), "Drift"),
        (lambda: Drift(0.05, absolute=0.02), "Drift"),
        (lambda: Drift(by="class"), "Drift"),
        (lambda: Drift(0.05, cash=True), "Drift"),
        (lambda: Drift(absolute=0.05, combine="both"), "combine"),  # type: ignore[arg-type]
        (lambda: Drift(absolute=-0.05).due(SOME), "absolute"),
        (lambda: Drift(absolute=0.05, by="sector").due(SOME), "sector"),
        (lambda: Drift(absolute=0.05, assets=["Z"]).due(SOME), "assets"),
        (lambda: Drift().due(problem({"A": 0.5}, {"A": 0.5})), "Drift"),
        (lambda: Drift(tracking_error=0.02).due(SOME), "tracking_error"),
    ],
)
def test_drift_refusals(make: Callable[[], Any], column: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert error.value.column == column


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    inside=st.one_of(st.just(0.0), st.floats(1e-100, 1)),
)
@example(seed=0, kinds=[0], inside=0.875)
@settings(max_examples=300)
def test_drift_fires_iff_the_full_band_is_broken(seed: int, kinds: list[int], inside: float) -> None:
    rng = np.random.default_rng(seed)
    assets = int(rng.integers(2, 8))
    table = random_table(rng, assets, int(rng.integers(0, assets // 3 + 1)), 1e4)
    table["width"] = np.where(rng.random(len(table)) < 0.3, 100.0, rng.uniform(0, 0.5, len(table)))
    wide = float(rng.choice([0.02, 0.2, 0.6]))

    def rules(fraction: float) -> tuple[Rule, ...]:
        made: list[Rule] = [
            DriftBand(absolute=wide, relative=2 * wide, combine="greater", inside=fraction, cash=True),
            DriftBand(absolute=(wide, 2 * wide), relative=1.0, inside=fraction),
            DriftBand(absolute="width", inside=fraction),
            DriftBand(absolute=wide, by="group", inside=fraction),
        ]
        return (*(made[kind] for kind in kinds), CashFloor(-100.0))

    held = Portfolio.from_table(table, CASH)
    full, shrunk = (Policy(constraints=rules(fraction)).problem(held) for fraction in (1.0, inside))
    broken = full.violation(full.before)
    assume(not 1e-13 < broken < 1e-11)
    due = check(Drift().due(shrunk))
    assert due.fired is (broken > 1e-12)
    if due:
        assert due.distance == pytest.approx(-broken, abs=1e-12)


# ---- joined triggers --------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Told(Trigger):
    """A trigger of somebody else's: one method, and it joins with ours. It remembers that it was asked."""

    answer: bool
    asked: list[Any] = field(default_factory=list, kw_only=True)

    def due(self, problem: Problem, *, now: Any = None, last: Any = None) -> Due:
        self.asked.append((now, last))
        return Due(repr(self), self.answer, float(self.answer), 0.5, "votes", f"told {self.answer}")


@pytest.mark.parametrize("votes", list(product([False, True], repeat=3)))
def test_truth_tables_ask_everybody(votes: Sequence[bool]) -> None:
    told = [Told(vote) for vote in votes]
    a, b, c = told
    for joined, wanted in (
        (a & b & c, all(votes)),
        (a | b | c, any(votes)),
        ((a & b) | c, (votes[0] and votes[1]) or votes[2]),
        (a & (b | c), votes[0] and (votes[1] or votes[2])),
    ):
        due = check(joined.due(SOME, now="2024-01-02", last="2024-01-01"))
        assert due.fired is wanted
        assert due.fired is (due.distance <= 0)
        leaves = due.table[due.table.unit == "votes"]
        assert leaves.fired.tolist() == list(votes)
    assert all(one.asked == [("2024-01-02", "2024-01-01")] * 4 for one in told)


def test_joined_of_one_kind_is_one_level() -> None:
    a, b, c = Told(True), Told(False), Told(True)
    assert [part.value for part in ((a & b) & c).due(SOME).parts] == [1.0, 0.0, 1.0]
    assert (a & b) & c == a & (b & c)
    assert (a & b) | c != a & (b | c)
    due = (a & b & c).due(SOME)
    assert (due.value, due.threshold, due.distance, due.unit) == (2.0, 3.0, 1.0, "triggers")
    assert due.reason == "told False"
    assert (a | b | c).due(SOME).reason == "told True; told True"
    for join in (lambda: a & 1, lambda: a | None, lambda: "1MS" & a):
        with pytest.raises(TypeError):
            join()


def test_annual_and_five_points() -> None:
    """Calendar and drift together, and either of them, with the table and the text of the answer."""
    trigger = Calendar("YS", tz=NEW_YORK) & (Drift() | Drift(0.2))
    assert repr(trigger) == "Calendar('YS', tz='America/New_York') & (Drift() | Drift(0.2))"
    now, last = at("2025-01-02 09:30", NEW_YORK), at("2024-01-02 09:30", NEW_YORK)
    due = check(trigger.due(SOME, now=now, last=last))
    assert due
    assert str(due).splitlines() == [
        "due: Calendar('YS', tz='America/New_York') & (Drift() | Drift(0.2)): 2 of 2 fired",
        "  due: Calendar('YS', tz='America/New_York'): due since 2025-01-01 00:00:00-05:00 "
        "(last: 2024-01-02 09:30:00-05:00)",
        "  due: Drift() | Drift(0.2): 1 of 2 fired",
        "    due: Drift(): A at 60% is 5% above its band 45% to 55%, target 50% (1 more outside)",
        "    not due: Drift(0.2): half the sum of the drifts is 10%, not above 20%; most of it by A at 60%, target 50%",
    ]
    table = due.table
    assert table.columns.tolist() == [
        "level", "trigger", "fired", "value", "threshold", "distance", "unit", "name", "reason"
    ]  # fmt: skip
    assert table.level.tolist() == [0, 1, 1, 2, 2]
    assert table.fired.tolist() == [True, True, True, True, False]
    assert table.dtypes[["value", "threshold", "distance"]].eq(float).all()
    assert not trigger.due(SOME, now=now, last=at("2025-01-01 00:00", NEW_YORK))


def test_triggers_are_values() -> None:
    for trigger in (Calendar("1MS", tz=LONDON) & Drift(), Drift(0.05) | Drift(tracking_error=0.02)):
        again = pickle.loads(pickle.dumps(trigger))
        assert again == trigger
        assert hash(again) == hash(trigger)
        assert eval(repr(trigger)) == trigger
    with pytest.raises(FrozenInstanceError):
        Drift(0.05).total = 0.1  # type: ignore[misc]
    assert repr(Drift(absolute=0.05, relative=0.25)) == "Drift(absolute=0.05, relative=0.25)"
    with pytest.raises(TypeError, match="abstract"):
        Trigger()  # type: ignore[abstract]


def test_labels_cannot_forge_lines() -> None:
    given = problem({"A\nnot due": 0.9}, {"A\nnot due": 0.5}, DriftBand(absolute=0.05))
    assert len(str(Drift().due(given)).splitlines()) == 1


def test_rebalancer_asks_its_trigger_or_the_given_one() -> None:
    table = pd.DataFrame({"quantity": [60.0, 40.0], "price": 1.0, "target": [0.5, 0.5]}, index=["A", CASH])
    rebalancer = Rebalancer(cash=CASH, trigger=Drift(0.2))
    assert not rebalancer.due(table)
    assert rebalancer.due(table, trigger=Drift(0.05))
    assert rebalancer.due(table, trigger=Calendar("1D"), now="2024-01-02", last="2024-01-01")
    with pytest.raises(InputError, match="no trigger"):
        Rebalancer(cash=CASH).due(table)


def test_time_zones_may_be_objects() -> None:
    for zone in (ZoneInfo(LONDON), UTC, timezone(timedelta(hours=1))):
        assert Calendar("1D", tz=zone).due(SOME, now="2024-01-02T12:00Z", last="2024-01-01T12:00Z")


# ---- the page for users -----------------------------------------------------------------------------------


def test_the_page_prints_what_it_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "triggers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", page, re.DOTALL)
    assert len(blocks) >= 3
    for code, printed in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "docs/triggers.md", "exec"), {})
        assert out.getvalue().strip() == printed.strip()


def test_and_or_cannot_drop_a_trigger() -> None:
    """`a and b` would be `b` alone: it is an error that says what to write."""
    with pytest.raises(InputError, match="&"):
        bool(Drift(0.05) and Calendar("1D"))
