"""The command line, end to end: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest

from equipoise.optimizer.batches.csv_cells import decimal, unguarded
from equipoise.optimizer.command import demo, output
from equipoise.optimizer.command import main as cli
from equipoise.optimizer.command.main import main
from equipoise.optimizer.rebalancer import Rebalancer

DATA = Path(__file__).parents[1] / "examples" / "data"
POLICY = """
cash = "USD"
[[costs]]
type = "ProportionalCost"
buy = 0.001
[[constraints]]
type = "DriftBand"
absolute = 0.05
[[constraints]]
type = "LongOnly"
[[constraints]]
type = "LotSize"
lot = 1
[[constraints]]
type = "Turnover"
limit = 0.2
"""
TABLE = "asset,quantity,price,target\nA,60,1,0.4\nB,30,1,0.5\nUSD,10,1,0.1\n"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class Folder:
    """A folder with a policy, and the command line run in it."""

    def __init__(self, path, capsys):
        self.path, self.capsys = path, capsys
        self.write("policy.toml", POLICY)

    def write(self, name, text):
        (self.path / name).write_text(text, encoding="utf-8", newline="")
        return str(self.path / name)

    def run(self, *arguments):
        """(exit code, the JSON of the last line, all of standard output, standard error)."""
        code = main([str(a) for a in arguments])
        out, err = self.capsys.readouterr()
        summary = json.loads(out.splitlines()[-1])
        assert summary["exit_code"] == code
        return code, summary, out, err

    def on(self, command, table, *more, policy="policy.toml"):
        """Run a command on this table (text); results go to the folder `out`."""
        where = () if command == "check" else ("--out", self.path / "out")
        return self.run(command, self.write("table.csv", table), "--policy", self.path / policy, *where, *more)

    def csv(self, name):
        with (self.path / "out" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def json(self, name):
        def refuse(constant):
            raise AssertionError(constant)

        return json.loads((self.path / "out" / name).read_text(), parse_constant=refuse)


@pytest.fixture
def folder(tmp_path, capsys):
    return Folder(tmp_path, capsys)


def text_of(header, *rows):
    file = io.StringIO()
    csv.writer(file).writerows([header, *rows])
    return file.getvalue()


class TestSolve:
    def test_a_plan_and_its_files(self, folder):
        code, summary, out, _ = folder.on("solve", TABLE)
        assert code == 0
        assert summary["verified"] is True
        assert "exact checks passed" in out
        assert {path.name for path in (folder.path / "out").iterdir()} == {
            "plan.json",
            "orders.csv",
            "weights.csv",
            "checks.csv",
        }
        orders = folder.csv("orders.csv")
        assert [(o["asset"], o["side"]) for o in orders] == [("A", "sell"), ("B", "buy")]
        assert summary["orders"] == 2
        weights = {row["asset"]: row for row in folder.csv("weights.csv")}
        assert 0.35 <= float(weights["A"]["after"]) <= 0.45
        assert weights["USD"]["upper"] == ""  # no bound: blank, not "inf"
        assert {row["passed"] for row in folder.csv("checks.csv")} == {"True"}

    def test_the_plan_as_json(self, folder):
        folder.on("solve", TABLE)
        plan = folder.json("plan.json")
        assert plan["schema_version"] == output.SCHEMA_VERSION
        assert plan["verified"] is True and plan["status"] in ("OPTIMAL", "FEASIBLE")
        assert plan["certificate"]["gap"] >= -1e-12
        assert all(check["passed"] for check in plan["checks"])
        assert {"equipoise", "numpy", "cvxpy", "clarabel"} <= set(plan["versions"])
        assert plan["inputs"] == {"table": output.digest(folder.path / "table.csv")}
        assert len(plan["policy"]["sha256"]) == 64
        # Exact: what was held plus what is traded is what is held then, and no money is lost but the costs.
        traded = {o["asset"]: Fraction(o["quantity"]) * (1 if o["side"] == "buy" else -1) for o in plan["orders"]}
        held = {p["asset"]: (Fraction(p["before"]), Fraction(p["after"])) for p in plan["positions"]}
        assert list(held) == ["A", "B", "USD"]
        for asset, (before, after) in held.items():
            if asset != "USD":
                assert before + traded.get(asset, 0) == after
        value = sum(after for _, after in held.values())
        assert value == 100 - Fraction(1, 1000) * sum(abs(x) for x in traded.values())

    def test_infeasible_says_why_and_leaves_no_old_orders(self, folder):
        folder.on("solve", TABLE)
        assert folder.csv("orders.csv")
        folder.write("tight.toml", POLICY.replace("limit = 0.2", "limit = 0.01"))
        code, summary, _, _ = folder.on("solve", TABLE, policy="tight.toml")
        assert code == 2
        assert summary["status"] == "INFEASIBLE" and "Turnover" in summary["message"]
        assert folder.csv("orders.csv") == [] and folder.csv("checks.csv") == []
        plan = folder.json("plan.json")
        assert plan["orders"] == [] and plan["certificate"]["gap"] is None
        assert plan["positions"][0] == {"asset": "A", "before": "60", "after": None}

    def test_returns_on_the_command_line(self, folder):
        returns = folder.write("r.csv", "day,A,B\n1,0.1,0.2\n2,-0.1,0.1\n3,0.05,-0.2\n")
        code, _, out, _ = folder.on("solve", TABLE, "--returns", returns)
        assert code == 0
        assert "tracking error, annual" in out

    def test_the_same_bytes_again_and_from_another_folder(self, folder):
        names = ["plan.json", "orders.csv", "weights.csv", "checks.csv"]
        folder.on("solve", TABLE)
        first = [(folder.path / "out" / name).read_bytes() for name in names]
        (folder.path / "there").mkdir()
        other = Folder(folder.path / "there", folder.capsys)
        other.on("solve", TABLE)
        assert [(other.path / "out" / name).read_bytes() for name in names] == first

    def test_the_order_of_the_rows_does_not_matter(self, folder):
        header, *rows = (DATA / "treasury.csv").read_text().splitlines()
        found = []
        for lines in (rows, rows[::-1]):
            table = "\n".join([header, *lines])
            code, *_ = folder.on("solve", table, policy=DATA / "treasury.toml")
            assert code == 0
            found.append([(folder.path / "out" / name).read_bytes() for name in ("orders.csv", "checks.csv")])
        assert found[0] == found[1]


HOSTILE = [
    '=HYPERLINK("http://x","y")',
    "+1+1",
    "-2",
    "@SUM(A1)",
    "new\nline",
    "re\rturn",
    "\x1b[31mred",
    "../../etc/passwd",
    "NA",
    "TRUE",
    "001",
    "nan",
    "a,b;\"c'",
    "<script>",
    "é🙂\u202e",
]


def assert_harmless(rows):
    for row in rows:
        for column in {"portfolio_id", "asset", "rule", "detail", "side", "reason", "message"} & set(row):
            assert not row[column].startswith(FORMULA), row[column]


def test_hostile_labels(folder):
    share = 1 / len(HOSTILE)
    rows = [[label, 10 + i % 3 * 30, 1, share] for i, label in enumerate(HOSTILE)]
    table = text_of(["asset", "quantity", "price", "target"], *rows, ["USD", 0, 1, 0])
    folder.write("loose.toml", POLICY.replace("limit = 0.2", "limit = 1"))
    code, _, out, _ = folder.on("solve", table, policy="loose.toml")
    assert code == 0
    # Nothing on the terminal but text: no cursor is moved, no line is started by a label.
    assert all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf") for c in out)
    for name in ("orders.csv", "weights.csv", "checks.csv"):
        found = folder.csv(name)
        assert found
        assert_harmless(found)
    # JSON has the labels as they are, in the order of the table.
    assert [row["asset"] for row in folder.json("plan.json")["weights"]] == [*HOSTILE, "USD"]
    assert [unguarded(row["asset"]) for row in folder.csv("weights.csv")] == [*HOSTILE, "USD"]


def test_hostile_portfolio_names(folder):
    rows = [line.split(",") for line in TABLE.splitlines()]
    table = text_of(["portfolio_id", *rows[0]], *([name, *row] for name in HOSTILE for row in rows[1:]))
    code, summary, out, _ = folder.on("batch", table)
    assert code == 0 and summary["portfolios"] == len(HOSTILE)
    assert {path.name for path in (folder.path / "out").iterdir()} == {"results.csv", "orders.csv", "summary.json"}
    assert [unguarded(row["portfolio_id"]) for row in folder.csv("results.csv")] == HOSTILE
    assert_harmless(folder.csv("orders.csv"))
    assert "\x1b" not in out


THREE = (
    "portfolio_id,asset,quantity,price,target\n"
    "good,A,60,1,0.4\ngood,B,30,1,0.5\ngood,USD,10,1,0.1\n"
    "stuck,A,100,1,0.4\nstuck,B,0,1,0.5\nstuck,USD,0,1,0.1\n"
    "bad,A,60,-1,0.4\nbad,B,30,1,0.5\nbad,USD,10,1,0.1\n"
)


class TestBatch:
    def test_one_row_a_portfolio_whatever_happens_to_it(self, folder):
        code, summary, out, err = folder.on("batch", THREE)
        assert code == 2
        assert summary["status"] == "incomplete" and (summary["portfolios"], summary["verified"]) == (3, 1)
        results = folder.csv("results.csv")
        assert [row["portfolio_id"] for row in results] == ["good", "stuck", "bad"]
        assert [row["verified"] for row in results] == ["True", "False", "False"]
        assert [row["status"] for row in results][1:] == ["INFEASIBLE", "INVALID_INPUT"]
        assert "Turnover" in results[1]["message"] and "price" in results[2]["message"]
        assert {row["portfolio_id"] for row in folder.csv("orders.csv")} == {"good"}
        assert folder.json("summary.json")["statuses"] == summary["statuses"]
        assert "stuck: INFEASIBLE" in out and "bad: INVALID_INPUT" in out
        assert "a second" in err

    def test_the_same_bytes_again(self, folder):
        found = []
        for _ in range(2):
            folder.on("batch", THREE)
            found.append({path.name: path.read_bytes() for path in (folder.path / "out").iterdir()})
        assert found[0] == found[1]

    def test_columns_that_all_portfolios_share(self, folder):
        assets = folder.write("assets.csv", "asset,quantity,price,target\nA,9,1,0.4\nB,9,1,0.5\nUSD,9,1,0.1\n")
        table = "portfolio_id,asset,quantity\n1,A,60\n1,B,30\n1,USD,10\n2,A,6\n2,X,1\n2,USD,1\n"
        code, _, _, _ = folder.on("batch", table, "--assets", assets)
        assert code == 2
        one, two = folder.csv("results.csv")
        assert one["verified"] == "True"
        assert two["status"] == "INVALID_INPUT"
        assert "'2'" in two["message"] and "'X'" in two["message"] and "assets.csv has no row" in two["message"]
        assert set(folder.json("summary.json")["inputs"]) == {"table", "assets"}
        folder.on("solve", TABLE)
        alone = [(o["asset"], o["quantity"]) for o in folder.csv("orders.csv")]
        folder.on("batch", table, "--assets", assets)
        assert [(o["asset"], o["quantity"]) for o in folder.csv("orders.csv")] == alone

    @pytest.mark.parametrize(
        ("assets", "said"),
        [
            ("asset,price,target\nA,1,0.5\nA,1,0.5\n", "stands there twice"),
            ("asset,price,target\nA,1,0.5\n,1,0.5\n", "no asset label"),
            ("asset,price,target,lot\nA,1,0.5,1\n", "is in"),
            ("portfolio_id,asset,price\n1,A,1\n", "one row an asset"),
            ("name,price\nA,1\n", "no column 'asset'"),
        ],
    )
    def test_bad_tables_of_assets(self, folder, assets, said):
        table = "portfolio_id,asset,quantity,lot\n1,A,60,1\n"
        code, summary, _, _ = folder.on("batch", table, "--assets", folder.write("assets.csv", assets))
        assert code == 1
        assert said in summary["message"]
        assert not (folder.path / "out").exists()

    def test_what_a_table_of_assets_lacks_costs_its_portfolio_only(self, folder):
        """Also if the portfolio could be solved without it; in the order of the input."""
        assets = folder.write("assets.csv", "asset,sector\nA,1\nB,1\nUSD,1\n")
        table = "portfolio_id,asset,quantity,price,target\n"
        for name, asset in (("1", "B"), ("2", "X"), ("3", "B")):
            table += f"{name},A,60,1,0.4\n{name},{asset},30,1,0.5\n{name},USD,10,1,0.1\n"
        code, _, out, _ = folder.on("batch", table, "--assets", assets)
        assert code == 2
        results = folder.csv("results.csv")
        assert [row["portfolio_id"] for row in results] == ["1", "2", "3"]
        assert [row["status"] == "INVALID_INPUT" for row in results] == [False, True, False]
        assert "  2: INVALID_INPUT: portfolio '2', asset 'X'" not in out and "assets.csv has no row" in out
        code, summary, _, _ = folder.on("check", table, "--assets", assets)
        assert (code, summary["invalid"]) == (1, 1)
        assert summary["message"] == results[1]["message"]

    def test_a_forgotten_table_of_assets_leaves_the_files_of_last_night(self, folder):
        assets = folder.write("assets.csv", "asset,price,target\nA,1,0.4\nB,1,0.5\nUSD,1,0.1\n")
        table = "portfolio_id,asset,quantity\n1,A,60\n1,B,30\n1,USD,10\n2,A,60\n2,B,30\n2,USD,10\n"
        assert folder.on("batch", table, "--assets", assets)[0] == 0
        before = {path.name: path.read_bytes() for path in (folder.path / "out").iterdir()}
        code, summary, _, _ = folder.on("batch", table)
        assert code == 1
        assert "none of 2 portfolios can be read, nothing is written; portfolio '1'" in summary["message"]
        assert {path.name: path.read_bytes() for path in (folder.path / "out").iterdir()} == before

    def test_no_plan_is_made_one_by_one(self, folder, monkeypatch):
        """Results and orders come from the arrays: a plan in fractions takes a hundred times as long."""

        def made(*_):
            raise AssertionError

        monkeypatch.setattr("equipoise.optimizer.batches.solve._made", made)
        assert folder.on("batch", THREE)[0] == 2
        monkeypatch.setattr("equipoise.optimizer.portfolio.portfolio.Portfolio.from_table", None)
        good = THREE[: THREE.index("stuck")]
        assert folder.on("batch", good)[0] == 0
        assert folder.on("check", good)[0] == 0


class TestCheck:
    def test_all_is_well(self, folder):
        code, summary, out, _ = folder.on("check", TABLE)
        assert (code, summary["status"]) == (0, "ok")
        assert "DriftBand, LongOnly, LotSize, Turnover" in out and "3 assets" in out

    def test_it_looks_at_every_portfolio_and_solves_none(self, folder, monkeypatch):
        monkeypatch.setattr("equipoise.optimizer.rebalancer.solve_convex", None)
        code, summary, out, _ = folder.on("check", THREE)
        assert code == 1
        assert (summary["portfolios"], summary["invalid"]) == (3, 1)
        assert "portfolio 'bad', asset 'A', column 'price'" in summary["message"]
        assert summary["message"] in out

    def test_a_missing_portfolio_id(self, folder):
        code, summary, _, _ = folder.on("check", "portfolio_id,asset,quantity,price,target\n,USD,1,1,1\n")
        assert code == 1 and "portfolio_id" in summary["message"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "is not a table"),
        ("asset,quantity,price,target\nA,1,1,1,1,1\nA,1\n", "table"),
        ("name,quantity\nA,1\n", "no column 'asset'"),
        ("asset,quantity,price,target\nA,x,1,0.9\nUSD,1,1,0.1\n", "asset 'A', column 'quantity', value 'x'"),
        ("asset,quantity,price,target\nA,1,1,0.8\nUSD,1,1,0.1\n", "the targets add up to 0.9"),
        ("asset,quantity,price,target\nA,1,1,0.8\nA,1,1,0.1\nUSD,1,1,0.1\n", "twice"),
        ("portfolio_id,asset,quantity,price,target\n1,USD,1,1,1\n", "equipoise batch"),
    ],
    ids=range(7),
)
def test_bad_tables_end_with_1_and_write_nothing(folder, table, said):
    code, summary, _, err = folder.on("solve", table)
    assert code == 1 and summary["status"] == "error"
    assert said in summary["message"]
    assert err.startswith("equipoise: ") and err.count("\n") == 1
    assert not (folder.path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["solve"],
        ["solve", "t.csv", "--policy", "p.toml"],
        ["solve", "t.csv", "--policy", "p.toml", "--out", "o", "--unknown"],
        ["solve", "t.csv", "--pol", "p.toml", "--out", "o"],  # no guessing at abbreviations
        ["solve", "there is no such table.csv", "--policy", DATA / "treasury.toml", "--out", "o"],
        ["solve", DATA / "treasury.csv", "--policy", "there is no such policy.toml", "--out", "o"],
        ["solve", DATA, "--policy", DATA / "treasury.toml", "--out", "o"],
        ["batch", DATA / "treasury.csv", "--policy", DATA / "treasury.toml", "--out", "o"],
        ["check", DATA / "treasury.csv", "--policy", DATA / "treasury.toml", "--assets", DATA / "equity.csv"],
    ],
    ids=range(11),
)
def test_bad_usage_ends_with_1(folder, arguments):
    code, summary, _, err = folder.run(*arguments)
    assert code == 1 and summary["status"] == "error"
    assert err.count("\n") == 1


def test_an_unknown_key_of_the_policy(folder):
    folder.write("typo.toml", POLICY.replace("limit", "limt"))
    code, summary, _, _ = folder.on("check", TABLE, policy="typo.toml")
    assert code == 1
    assert "typo.toml: [[constraints]] 4 (Turnover): unknown key 'limt'" in summary["message"]


def test_output_that_cannot_be_written(folder):
    folder.write("out", "a file where the folder should be")
    code, summary, _, _ = folder.on("solve", TABLE)
    assert code == 1 and "cannot be written to" in summary["message"]


def test_output_that_cannot_be_written_is_found_before_the_work(folder, monkeypatch):
    folder.write("out", "a file where the folder should be")
    monkeypatch.setattr(Rebalancer, "solve", None)
    code, summary, _, _ = folder.on("solve", TABLE)
    assert code == 1 and "a file stands where a folder is needed" in summary["message"]


def test_the_output_is_none_of_the_inputs(folder):
    (folder.path / "out").mkdir()
    table = folder.write("out/orders.csv", TABLE)
    code, summary, _, _ = folder.run(
        "solve", table, "--policy", folder.path / "policy.toml", "--out", folder.path / "out"
    )
    assert code == 1 and "orders.csv: is read from, or written to, already" in summary["message"]
    assert Path(table).read_text() == TABLE
    assert [path.name for path in (folder.path / "out").iterdir()] == ["orders.csv"]


def test_standard_output_that_is_full(folder, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        where = ("--policy", str(folder.path / "policy.toml"), "--out", str(folder.path / "out"))
        code = main(["solve", folder.write("t.csv", TABLE), *where])
    assert code == 1
    assert "standard output: No space left on device" in folder.capsys.readouterr().err


def test_all_files_or_none(tmp_path):
    output.write_files(tmp_path, {"a": "1", "b": "1"})
    with pytest.raises(UnicodeEncodeError):
        output.write_files(tmp_path, {"a": "2", "b": "\ud800"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "1", "b": "1"}


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "orders.csv").symlink_to(tmp_path / "elsewhere")
    output.write_files(tmp_path / "out", {"orders.csv": "new"})
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert (tmp_path / "out" / "orders.csv").read_text() == "new"


@pytest.mark.parametrize("debug", [False, True])
def test_an_internal_error_ends_with_3(folder, monkeypatch, debug):
    def broken(self, table, **options):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(Rebalancer, "solve", broken)
    code, summary, _, err = folder.on("solve", TABLE, *["--debug"] * debug)
    assert code == 3 and "ZeroDivisionError" in summary["message"]
    assert ("Traceback" in err) is debug
    assert debug or err.count("\n") == 1


def test_decimals_in_full():
    for text in ("0", "1", "-1", "0.000001", "-12.5", "625000.000001", "123456789012345678901234567890.5"):
        assert decimal(Fraction(text)) == text
    assert decimal(Fraction(1, 3)) == "1/3"


def test_the_demo_tells_its_story(folder, monkeypatch):
    monkeypatch.setattr(demo, "ACCOUNTS", 3)
    code, summary, out, _ = folder.run("demo")
    assert code == 0 and summary["batch"]["portfolios"] == 3
    assert "health factor           1.293 -> " in out  # what the first sentence says
    assert "turnover must be at least 6.0" in out  # digits may follow
    assert "all 1,000" not in out


def test_help_is_quick_and_the_last_line_of_a_process_is_json(tmp_path):
    code = (
        "import sys; from equipoise.optimizer.command import main as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: print(end.code, *({'pandas', 'cvxpy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    command = [
        sys.executable,
        "-m",
        "equipoise.optimizer.command.main",
        "solve",
        DATA / "treasury.csv",
        "--out",
        tmp_path,
    ]
    done = subprocess.run([*command, "--policy", DATA / "treasury.toml"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["verified"] is True
    assert cli.OK == 0


@pytest.mark.skipif(sys.platform == "win32", reason="the C library is found otherwise")
def test_the_summary_stands_below_what_libraries_print():
    """A solver in C may print into a buffer of its own, which is emptied when the process ends."""
    code = (
        "import ctypes, sys; from equipoise.optimizer.command.main import main; "
        f"ctypes.CDLL(None).puts(b'noise'); sys.exit(main(['check', {str(DATA / 'treasury.csv')!r}, "
        f"'--policy', {str(DATA / 'treasury.toml')!r}]))"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=buffered)
    assert "noise" in done.stdout.splitlines()
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "ok"


def test_effort_and_proof_from_the_command_line(folder):
    """As `Rebalancer.solve` and `solve_batch` take them; a batch may be allocated without bias."""
    code, summary, *_ = folder.on("solve", TABLE, "--exact", "--gap", "1e-4", "--time-limit", "inf")
    assert code == 0 and summary["gap"] <= 1e-4
    code, summary, *_ = folder.on("solve", TABLE, "--effort", "-1")
    assert code == 1 and "effort" in summary["message"]
    table = "portfolio_id," + TABLE.replace("\nA", "\n1,A").replace("\nB", "\n1,B").replace("\nUSD", "\n1,USD")
    for more in (["--effort", "0"], ["--allocate", "unbiased"], ["--exact", "--time-limit", "5"]):
        code, summary, *_ = folder.on("batch", table, *more)
        assert code == 0 and summary["verified"] == 1
