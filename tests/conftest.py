"""Settings of all tests."""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

# no test is judged by its duration; in CI the same examples are tried every time
settings.register_profile("scfm", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("scfm")

if (
    "SCFM_CACHE" not in os.environ
):  # set once, by the process that starts the workers: nothing is written to the user's cache
    os.environ["SCFM_CACHE"] = tempfile.mkdtemp(prefix="scfm-tests-")
    atexit.register(shutil.rmtree, os.environ["SCFM_CACHE"], ignore_errors=True)
