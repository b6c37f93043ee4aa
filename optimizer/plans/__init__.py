"""Solutions in, verified orders out, and everything that says what they do and why.

Open `plan` for what users read, `reasons` for why an asset is traded, and `batch_tables` for many at once.
"""
