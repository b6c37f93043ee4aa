"""A plan's orders in, an order of sending them out that is safe after every step and every partial fill.

Open `steps` for what users ask, `search` for how it is found, and `states` for what is judged.
"""
