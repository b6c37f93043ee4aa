"""The tables of the shipped example, so that `equipoise demo` finds them wherever it is installed."""
