"""Parameters and records of accounts, checked: e-mode categories, factors, least debts, recorded margins, prices' age.

Every check raises one InputError that names the account (the first part of an (account, asset) label, or `account`),
the asset, the figure found and what was wanted; it returns nothing, or what the next step needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces import Array
from equipoise.optimizer.formulas.arguments import Label, checked, refusal, together


@dataclass(frozen=True)
class EMode:
    """An Aave e-mode category: the factors of the collaterals in it. `bonus` is 0.01 for 1 %.

    Source: Aave v3, EModeConfiguration; assets outside keep their own liquidation threshold and bonus.
    """

    label: str
    ltv: float
    threshold: float
    bonus: float
    assets: Collection[str]

    def __post_init__(self) -> None:
        check_factors([self.label], [self.threshold], borrow=[self.ltv], bonus=[self.bonus])


def with_emode(
    assets: Sequence[str],
    own: ArrayLike,
    category: int | None,
    categories: Mapping[int, EMode],
    factor: str = "threshold",
    *,
    account: str | None = None,
) -> Array:
    """The factors `own` of these assets, with the category's where it has the asset; `factor`: threshold, ltv, bonus.

    Category 0 or None is no e-mode. Raises InputError, naming the account, for a category that is not in the table.
    """
    numbers, _ = together(own=checked(own, "own", at_least=0.0), assets=np.zeros(len(assets)))
    if not category:
        return numbers
    if category not in categories:
        known = ", ".join(str(key) for key in sorted(categories)) or "none"
        raise refusal(
            f"there is no such e-mode category (known: {known})", account=account, column="emode", value=category
        )
    chosen = categories[category]
    if factor not in ("threshold", "ltv", "bonus"):
        raise InputError("must be 'threshold', 'ltv' or 'bonus'", column="factor", value=factor)
    return np.where([asset in chosen.assets for asset in assets], getattr(chosen, factor), numbers)


def check_factors(
    assets: Sequence[Label],
    threshold: ArrayLike,
    *,
    borrow: ArrayLike | None = None,
    bonus: ArrayLike | None = None,
    account: str | None = None,
) -> None:
    """Refuses factors that no protocol would list, by an InputError that names the account and the asset.

    0 < threshold < 1, or 0 for what is no collateral; borrow ≤ threshold (Aave's LTV, Compound III's borrow factor);
    threshold·(1 + bonus) ≤ 1, or a liquidation at the threshold would leave bad debt (Compound III: bonus is
    1/liquidation_factor − 1). Source: Aave v3, PoolConfigurator.configureReserveAsCollateral; Comet's AssetList.
    """
    rows = (_each(assets, threshold, "threshold"), _each(assets, borrow, "borrow"), _each(assets, bonus, "bonus"))
    for asset, limit, part, extra in zip(assets, *rows, strict=True):
        for column, value, fits, problem in (
            ("threshold", limit, 0.0 <= limit < 1.0, "must lie between 0 and 1 (0: no collateral)"),
            ("borrow", part, part >= 0.0, "must be at least 0"),
            ("borrow", part, part <= limit, f"must be at most the liquidation threshold {limit:g}"),
            ("bonus", extra, 0.0 <= extra < np.inf, "must be at least 0, such as 0.05 for 5 %"),
            ("bonus", extra, limit * (1.0 + extra) <= 1.0, f"leaves bad debt: {limit:g}·(1 + bonus) is above 1"),
        ):
            if not fits:
                raise refusal(problem, account=account, asset=asset, column=column, value=value)


def _each(assets: Sequence[Label], given: ArrayLike | None, column: str) -> list[float]:
    """One number an asset, blanks included: they are refused where their asset can be named."""
    numbers = np.asarray(0.0 if given is None else given)
    if numbers.dtype.kind not in "iuf":
        raise InputError("must be numbers, one an asset", column=column, value=given)
    return [float(x) for x in together(**{column: numbers, "assets": np.zeros(len(assets))})[0]]


def check_least_debt(
    assets: Sequence[Label], value: ArrayLike, least: ArrayLike, *, account: str | None = None
) -> None:
    """Refuses a debt between nothing and `least`: Maker's dust, Compound III's borrow minimum. Debts are below zero."""
    owed, floor, _ = together(
        value=-checked(value, "value"), least=checked(least, "least"), assets=np.zeros(len(assets))
    )
    for asset, debt, minimum in zip(assets, owed, floor, strict=True):
        if 0.0 < debt < minimum:
            problem = f"a debt must be zero or at least {minimum:g}; repay all of it or borrow more"
            raise refusal(problem, account=account, asset=asset, column="value", value=-float(debt))


def check_margin(
    recorded: Mapping[Label, float],
    recomputed: Mapping[Label, float],
    tolerance: float = 0.0,
    *,
    account: str | None = None,
) -> dict[Label, float]:
    """Refuses to go on where a venue's recorded margin is not the recomputed one; returns the differences.

    recorded − recomputed of each row, in money, all within ±tolerance. Raises InputError for a row that only one side
    knows, for a figure that is no number, and for the largest difference beyond the tolerance.
    """
    allowed = float(checked(tolerance, "tolerance", at_least=0.0))
    for here, there, where in ((recorded, recomputed, "recomputed"), (recomputed, recorded, "recorded")):
        for asset, value in here.items():
            if asset not in there:
                raise refusal(f"its margin was not {where}", account=account, asset=asset, column="margin", value=value)
            if not isfinite(value):
                raise refusal("must be a finite number", account=account, asset=asset, column="margin", value=value)
    differences = {asset: recorded[asset] - recomputed[asset] for asset in recorded}
    wrong = max(differences, key=lambda asset: abs(differences[asset]), default=None)
    if wrong is not None and abs(differences[wrong]) > allowed:
        problem = (
            f"the recorded margin differs from the recomputed {recomputed[wrong]:.10g} by {differences[wrong]:+.6g}, "
            f"more than {allowed:g}; reconcile the account before trading on it"
        )
        raise refusal(problem, account=account, asset=wrong, column="margin", value=recorded[wrong])
    return differences


def check_prices(
    updated: Mapping[Label, float],
    heartbeat: Mapping[Label, float] | float,
    now: float,
    *,
    account: str | None = None,
) -> dict[Label, float]:
    """Refuses a price that is older than its feed's heartbeat, or from the future; returns the ages in seconds.

    `updated` and `now`: seconds since 1970 (`pandas.Timestamp.timestamp()`); `heartbeat`: seconds, one for each feed
    or one for all (Chainlink on Ethereum: 3600 for ETH/USD, 86400 for USDC/USD). A price is good up to its heartbeat.
    """
    ages = {asset: float(now - time) for asset, time in updated.items()}
    for asset, age in ages.items():
        limit = heartbeat.get(asset, np.nan) if isinstance(heartbeat, Mapping) else heartbeat
        if not limit > 0:
            problem = "needs a heartbeat above zero, in seconds"
            raise refusal(problem, account=account, asset=asset, column="heartbeat", value=limit)
        if not 0.0 <= age <= limit:
            state = f"is {age:g} seconds old, its heartbeat is {limit:g}" if age > limit else "is not from the past"
            problem = f"the price {state}; get a fresh one before trading on it"
            raise refusal(problem, account=account, asset=asset, column="updated", value=updated[asset])
    return ages
