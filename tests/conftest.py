"""Settings of all tests."""

import os

from hypothesis import settings

# no test is judged by its duration; in CI the same examples are tried every time
settings.register_profile("scfm", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("scfm")
