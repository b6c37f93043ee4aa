"""How the property tests run: the same examples every time, and no clock.

EQUIPOISE_EXPLORE=1 draws new examples instead, ten times as many: for a campaign, not for the suite.
"""

import os

from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("explore" if os.environ.get("EQUIPOISE_EXPLORE") else "suite")
