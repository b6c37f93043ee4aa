"""The rules, and what they are made from: `rule` is the base of them all, `terms` what envelopes are the sums of."""
