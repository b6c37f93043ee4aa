"""Supply changes: rebases and splits scale quantities before drift is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number

if TYPE_CHECKING:
    import pandas as pd


def rebased(table: pd.DataFrame, factor: Mapping[str, float], *, split: bool = False) -> pd.DataFrame:
    """The table with these assets' quantities times `factor`; with `split`, their prices divided by it.

    A rebase (a staking reward that is paid as tokens: 1.0001; an elastic supply that shrinks: 0.98) changes what is
    held, and so the NAV and the drift; a share split or a redenomination changes neither. A debt in a token that
    rebases grows with it. Only the factors that are not known to the table's source yet belong here.

    Raises InputError for an asset that is not in the table, and for a factor that is not above zero.
    """
    result = table.copy()
    labels = result["asset"] if "asset" in result.columns else result.index.to_series()
    for asset, times in factor.items():
        rows = (labels == asset).to_numpy()
        if not rows.any():
            raise InputError("there is no such asset in the table", asset=asset, column="factor", value=times)
        check_number(times, f"factor of {asset}", above=0.0)
        result.loc[rows, "quantity"] = result["quantity"].astype(float)[rows] * times
        if split:
            result.loc[rows, "price"] = result["price"].astype(float)[rows] / times
    return result
