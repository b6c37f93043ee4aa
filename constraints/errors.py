"""The one kind of error that a user's input can cause."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class InputError(ValueError):
    """Bad input: says where it stands, what was found there and what to do about it.

    `portfolio`, `asset`, `column` and `value` name the place (None where that part does not apply);
    `problem` is the sentence. The text of the error joins them: "portfolio 'A', asset 'BTC', column
    'price', value -1.0: a price must be above zero; ...".
    """

    def __init__(
        self,
        problem: str,
        *,
        portfolio: object = None,
        asset: object = None,
        column: object = None,
        value: object = None,
    ) -> None:
        self.problem = problem
        self.portfolio = portfolio
        self.asset = asset
        self.column = column
        self.value = value
        super().__init__(problem)

    def __str__(self) -> str:
        places = (
            ("portfolio", self.portfolio),
            ("asset", self.asset),
            ("column", self.column),
            ("value", self.value),
        )
        place = ", ".join(f"{name} {_shown(where)}" for name, where in places if where is not None)
        return f"{place}: {self.problem}" if place else self.problem

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle through their arguments; ours are keywords, so that workers can send them home.
        return _rebuilt, (type(self), self.problem, self.portfolio, self.asset, self.column, self.value)

    def within(self, portfolio: object) -> InputError:
        """The same error, said of this portfolio, if it has a name."""
        if portfolio is None:
            return self
        return InputError(self.problem, portfolio=portfolio, asset=self.asset, column=self.column, value=self.value)


class NotStackable(Exception):  # noqa: N818 - a turn in the way, no error of anybody's
    """Some portfolios of a stack must be taken one by one; no user ever sees this.

    `portfolios` marks them (B,); None means all of them. Alone, each gives its answer, or its own InputError.
    """

    def __init__(self, portfolios: NDArray[np.bool_] | np.bool_ | None = None) -> None:
        self.portfolios = None if portfolios is None else np.asarray(portfolios)
        super().__init__("these portfolios must be taken one by one")


def _shown(value: object) -> str:
    item = getattr(value, "item", None)
    return repr(item() if callable(item) and getattr(value, "ndim", 1) == 0 else value)


def _rebuilt(
    kind: type[InputError], problem: str, portfolio: object, asset: object, column: object, value: object
) -> InputError:
    return kind(problem, portfolio=portfolio, asset=asset, column=column, value=value)
