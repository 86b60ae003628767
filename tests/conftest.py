"""`make test-long` keeps what its tests did in a result file, `$MFMDA_RECORD`."""

import os
import platform
import time

import pytest


@pytest.fixture(scope="session")
def record():
    "Call it with what a test did, once that has passed."
    from mfmda.core.files import write_json
    from mfmda.core.runtime import git_commit, package_versions

    entries, start = [], time.monotonic()
    yield lambda **facts: entries.append(facts)
    path = os.environ.get("MFMDA_RECORD")
    if not path:
        return
    machine = dict(system=platform.system(), processor=platform.machine(), cores=os.cpu_count())
    facts = dict(
        tests=sorted(entries, key=lambda entry: (entry["test"], entry["of"])),
        wall_s=round(time.monotonic() - start, 1),
        commit=git_commit(),
        versions=package_versions(),
        machine=machine,
    )
    write_json(path, facts)
