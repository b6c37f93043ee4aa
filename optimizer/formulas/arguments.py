"""Figures as arrays, checked: what the closed forms of lending, liquidation, leverage and margin share."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import entries, floats, number
from equipoise.constraints.pieces import Array

#: A row of a table: an asset, or an account and an asset.
Label: TypeAlias = str | tuple[str, str]


def refusal(
    problem: str,
    *,
    account: str | None = None,
    asset: Label | None = None,
    column: str | None = None,
    value: object = None,
) -> InputError:
    """The InputError about this row, with its account if it has one."""
    if isinstance(asset, tuple):
        account, asset = asset
    where = f"account {account!r}: " if account is not None else ""
    return InputError(where + problem, asset=asset, column=column, value=value)


def checked(
    given: ArrayLike,
    argument: str,
    *,
    at_least: float = -np.inf,
    at_most: float = np.inf,
    above: float = -np.inf,
    below: float = np.inf,
    finite: bool = True,
) -> Array:
    """The argument as an array of floats within its range, or an InputError that names it and the first misfit.

    What counts as a number is said in `numbers`; texts do not. Without `finite`, infinity does.
    """
    cells = entries(given)
    if cells.size == 0:
        raise InputError("must be a number or an array of numbers", column=argument, value=given)
    values, wrong = floats(cells, text=False)
    fits = (values >= at_least) & (values <= at_most) & (np.isfinite(values) if finite else ~np.isnan(values))
    fits &= ~((values <= above) | ((values >= below) & (below < np.inf)))
    if not fits.all():
        limits = (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
        wanted = " and ".join(f"{word} {limit:g}" for word, limit in limits if np.isfinite(limit))
        raise InputError(f"must be {wanted or 'a finite number'}", column=argument, value=cells[~fits][0])
    for cell in cells[wrong & np.isfinite(values)][:1]:
        number(cell, None, argument)
    return values


def together(**given: Array) -> tuple[Array, ...]:
    """The arrays, broadcast to one shape, or an InputError that names their shapes."""
    try:
        return np.broadcast_arrays(*given.values())
    except ValueError:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in given.items())
        raise InputError(f"these shapes do not fit together: {shapes}") from None


def ratio(over: ArrayLike, under: ArrayLike, *, nothing: float = np.inf) -> Array:
    """over / under, and `nothing` where `under` is not above zero."""
    above, below = np.broadcast_arrays(np.asarray(over, dtype=float), np.asarray(under, dtype=float))
    result: Array = np.full(above.shape, nothing)
    np.divide(above, below, out=result, where=below > 0)
    return result
