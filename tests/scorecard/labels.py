"""Row 14: hostile names through every way out; read back by other means than those that wrote them."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from equipoise import Rebalancer
from equipoise.constraints import InputError, Turnover
from equipoise.optimizer.command.output import plan_files
from equipoise.optimizer.command.policy_file import PolicyFile
from equipoise.optimizer.triggers import Drift
from scorecard.figure import Result, Row, counted

# fmt: off
FIXED = [
    "=1+1", "+1", "-1+1", "@SUM(A1)", "'=1+1", "''=1+1", "'", "＝1+1", "＋1", "－1", "＠a", "= 1", "x=1",
    '=HYPERLINK("http://a.b","c")', "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "<img src=x onerror=a()>",
    "&amp;", "&lt;b&gt;", "\x1b[31mred\x1b[0m", "a\x1b]0;title\x07b", "a\x00b", "a\x07b", "a\x08b", "a\x7fb",
    "a\x85b", "a\x9bb", "a\rb", "a\nb", "a\r\nb", "a\tb", "a\u2028b", "a\u2029b", "\u202egpj.exe", "a\u202db",
    "a\u200fb", "a\u200bb", "\ufeffa", "a\u00a0b", 'a"b', '"a"', '""', "a,b", "a;b", "a|b", "a'b", "a\\b", "\\x1b",
    "'\\x1b", "\\", "\\\\", "a\\nb", "NA", "nan", "NaN", "None", "null", "TRUE", "False", "1e5", "001", "1", "0x10",
    "1_000", "１２", "inf", "-inf", "2026-01-01", "1/2", "%s%n", "{0}", "${jndi:x}", "../../etc", "a/b", "C:\\a", "a b",
    "é", "e\u0301", "ß", "İ", "\U0001f600", "漢字", "\u0627\u0644", "a\U000e0001b", "a\udc80b", "\ud800", "a\ufffdb",
    "a\uffffb", "x" * 5000, "'" + "y" * 3000, "#REF!", "portfolio_id", "asset", "__class__", "a#b", "a%b", "`id`",
    "$(id)", "; rm", "--help", "-", "=", "@", "+", "a\x1cb",
]
# fmt: on
_STARTS = tuple("=+-@＝＋－＠\t\r\n")


def hostile(count: int) -> list[str]:
    """So many different names, the fixed ones first, the others made of their parts."""
    rng = random.Random(14)
    letters = sorted({c for name in FIXED for c in name[:20]})
    found = dict.fromkeys(FIXED)
    while len(found) < count:
        found["".join(rng.choices(letters, k=rng.randint(1, 8)))] = None
    return rng.sample(list(found), count)


def _read(cell: str) -> str:
    """As the documentation says: after an apostrophe, a backslash and what follows stand for one character."""
    if not cell.startswith("'"):
        return cell
    pattern = r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
    return re.sub(pattern, lambda m: "\\" if m[1] == "\\" else chr(int(m[1][1:], 16)), cell[1:])


def _live(cell: str) -> bool:
    number = re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?", cell)
    unprinted = not cell.replace("\n", " ").isprintable()
    return unprinted or (number is None and cell.lstrip(" ").startswith(_STARTS))


def _table(name: str) -> pd.DataFrame:
    columns = {"asset": [name, "USD"], "quantity": [10.0, 50.0], "price": [5.0, 1.0], "target": [0.8, 0.2]}
    return pd.DataFrame({c: pd.Series(x, dtype=object if c == "asset" else None) for c, x in columns.items()})


def _rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def _of_csv(name: str, text: str, column: str) -> list[str]:
    header, *rows = _rows(text)
    wrong = [f"{name!r}: live cell {cell[:60]!r}" for row in rows for cell in row if _live(cell)]
    if name not in [_read(row[header.index(column)]) for row in rows]:
        wrong.append(f"{name!r}: not in the column {column}")
    return wrong


def _printed(name: str, text: str, like: str) -> list[str]:
    odd = [c for c in text.replace("\n", "") if not c.isprintable()]
    lines = text.count("\n") != like.count("\n")
    return [f"{name!r}: {odd[:3]!r} on the terminal"] * bool(odd) + [f"{name!r}: lines of its own"] * lines


def _alone(name: str) -> list[str]:
    """As asset, portfolio and rule of one plan: its files, its text, its tables."""
    innocent = _solved("A", "A")
    try:
        plan, policy = _solved(name, name)
    except InputError as error:  # refused, in one printed line that says why
        half = any("\ud800" <= c <= "\udfff" for c in name)
        told = (name != name.strip() and "white space" in str(error)) or (half and "surrogate" in str(error))
        return _printed(name, str(error), "") + ([] if told else [f"{name!r}: refused: {str(error)[:80]}"])
    files = plan_files(plan, policy, {})
    wrong = [*_of_csv(name, files["orders.csv"], "asset"), *_of_csv(name, files["weights.csv"], "asset")]
    wrong += _of_csv(name, files["checks.csv"], "rule")
    record = json.loads(files["plan.json"])
    if not (record["portfolio"] == record["orders"][0]["asset"] == name and files["plan.json"].isascii()):
        wrong.append(f"{name!r}: another name in JSON")
    wrong += _printed(name, str(plan), str(innocent[0]))
    due = str(policy.rebalancer.due(_table(name), trigger=Drift(absolute=0.01)))
    wrong += _printed(name, due, str(innocent[1].rebalancer.due(_table("A"), trigger=Drift(absolute=0.01))))
    if set(re.findall("<(script|img)", str(plan.orders._repr_html_()))):  # type: ignore[operator]
        wrong.append(f"{name!r}: live in HTML")
    return wrong


def _solved(asset: str, name: str) -> tuple[object, PolicyFile]:
    rebalancer = Rebalancer(cash="USD", constraints=[Turnover(0.1, name=name)])
    return rebalancer.solve(_table(asset), name=name), PolicyFile(rebalancer, "")


def _together(names: list[str]) -> list[str]:
    """As portfolio and asset in the files of a batch, CSV and Parquet."""
    table = pd.concat([_table(name).assign(portfolio_id=pd.Series([name] * 2, dtype=object)) for name in names])
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("csv", "parquet"):
            places = {what: Path(folder) / f"{what}.{suffix}" for what in ("results", "orders")}
            Rebalancer(cash="USD").write_batch(table, results=places["results"], orders=places["orders"])
            if suffix == "csv":
                results, orders = (_rows(place.read_bytes().decode()) for place in places.values())
                wrong += [f"live cell {c[:60]!r}" for row in (*results, *orders) for c in row if _live(c)]
                found = [_read(row[0]) for row in results[1:]]
                pairs = {(_read(row[0]), _read(row[1])) for row in orders[1:]}
                wanted = names
            else:
                results, orders = (pq.read_table(place).to_pydict() for place in places.values())
                found, pairs = results["portfolio_id"], set(zip(orders["portfolio_id"], orders["asset"], strict=True))
                wanted = [name.encode("utf-8", "backslashreplace").decode() for name in names]
            changed = [(name, other) for name, other in zip(wanted, found, strict=True) if name != other]
            wrong += [f"{name!r} became {other!r} in {suffix}" for name, other in changed]
            traded = [name for name in names if name == name.strip() and not re.search("[\ud800-\udfff]", name)]
            wrong += [f"{name!r}: no order in {suffix}" for name in traded if (name, name) not in pairs]
    return wrong


def hostile_names(count: int) -> Result:
    names = hostile(count)
    missed = [said for name in names for said in _alone(name)]
    return counted(missed + _together(names), count)


ROWS = [
    Row(14, "hostile names through CSV, JSON, Parquet, terminal, tables", "exact round trip, nothing live",
        hostile_names, 40, 200),
]  # fmt: skip
