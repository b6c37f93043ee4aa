"""Tables of holdings in, arrays with labels out: checked cell by cell, for one portfolio and for many.

Open `portfolio` for one table, `stack` for a batch, and `transfers` for a portfolio in several accounts.
"""
