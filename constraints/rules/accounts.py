"""Which rows a rule is about, where a portfolio lives in several accounts, and on which side they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces import Array, Bound, Mask
from equipoise.constraints.rules.rule import Account, bounded, refuse


def counted(account: Account, assets: Sequence[str] | None, of: str | None) -> Mask:
    """The mask of the rows that a rule is about: those of `assets` (None: all, the cash too), and of these the ones
    whose label in the column `account` is `of`, if that is given.

    Raises InputError where no row has that label, and for a debt that has no label at all.
    """
    where = np.full(account.shape, True) if assets is None else account.positions(assets, "assets")
    if of is None:
        return where
    if not isinstance(of, str):
        raise InputError("must be a label of the column 'account'", column="account", value=of)
    labels = np.asarray(account.labels("account"), dtype=object)
    lost = (labels == None) & ((account.before < 0) | (account.target < 0))  # noqa: E711 - by entry
    lost[account.cash] = False
    if lost.any():
        i = account.first(lost)
        raise InputError(
            "a debt must belong to an account; write its name here", asset=account.assets[i], column="account"
        )
    where = np.asarray(where & (labels == of))
    none = np.broadcast_to(~where.any(axis=-1, keepdims=True), where.shape)
    if none.any():
        account.first(none)
        raise InputError("no row belongs to this account", column="account", value=of)
    return where


def labelled(label: str, of: str | None) -> str:
    """The label of a rule's row, with the account that it is about."""
    return label if of is None else f"{label} of {of}"


def of_account(of: str | None) -> tuple[str, ...]:
    """The label column of rules on one account."""
    return () if of is None else ("account",)


def sides(account: Account, where: Mask, why: str) -> tuple[Array, Bound]:
    """Each position's side, 1 or −1 (held, or if not held, wanted below zero), and the bound that keeps it there.

    `where`: the assets that are bounded. Raises InputError for one that is held on one side and wanted on the other.
    """
    before, target = account.before, account.target
    short = (before < 0) | ((before == 0) & (target < 0))
    problem = f"{why} needs to know on which side a position is: give the debt and the holding a row each"
    refuse(where & (before * target < 0), target, account, "target", problem)
    low, high = np.where(short, -np.inf, 0.0), np.where(short, 0.0, np.inf)
    return np.where(short, -1.0, 1.0), bounded("stays a holding, or a debt", where, low, high)
