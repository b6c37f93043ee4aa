"""Closed forms of lending, liquidation, leverage and margin: plain numbers and arrays in and out.

Nothing in the other folders uses them; users do. Open the file of the venue that you ask about.
"""
