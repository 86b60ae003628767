"""`make test-long` keeps what its tests did in a result file, `$MFMDA_RECORD`."""
import os
import platform
import time

import pytest


@pytest.fixture(scope="session")
def record():
    "Call it with what a test did, once that has passed."
    from mfmda.config import git_commit, versions, write_json
    entries, start = [], time.monotonic()
    yield lambda **facts: entries.append(facts)
    if path := os.environ.get("MFMDA_RECORD"):
        write_json(path, dict(tests=sorted(entries, key=lambda e: (e["test"], e["of"])), wall_s=round(time.monotonic() - start, 1), commit=git_commit(), versions=versions(),
                              machine=dict(system=platform.system(), processor=platform.machine(), cores=os.cpu_count())))
