"""`make gpu`, small and on a CPU: it measures every case, runs steps, and goes on."""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import gpu
import on_gpu


def test_it_measures_runs_and_goes_on(tmp_path):
    command = [sys.executable, gpu.__file__, "--device", "cpu", "--small", "--root", tmp_path]
    done = subprocess.run([*command, "--minutes", "1.5", "--workers", "1"], check=False)
    assert done.returncode == 0
    told = json.loads((tmp_path / "figures" / "gpu.json").read_text(encoding="utf-8"))
    cases = on_gpu.Cases("cpu", small=True).all()
    assert list(told["cases"]) == list(cases) and told["small"]
    for name, (ways, _) in cases.items():
        assert list(told["cases"][name]) == list(ways)
        assert not any("error" in found for found in told["cases"][name].values()), name
    jobs = gpu.jobs_of("smoke", str(tmp_path))
    there = {name for name, job in jobs.items() if job[3].exists()}
    assert there and gpu.Walk(jobs, 1, 0.0).done == there


def test_a_job_that_fails_is_tried_again_and_named(tmp_path, monkeypatch):
    "The second try is without CUDA graphs; what needed it is left."
    monkeypatch.setenv("MFMDA_CUDA_GRAPHS", "1")
    cell = dict(cell_type="code", metadata={}, source="raise ValueError('no such camera')")
    page = tmp_path / "page.ipynb"
    page.write_text(json.dumps(dict(cells=[cell])), encoding="utf-8")
    jobs = {
        "first": ([], str(page), {}, tmp_path / "first.json"),
        "second": (["first"], str(page), {}, tmp_path / "second.json"),
    }
    failed, left = gpu.Walk(jobs, 1, 60.0).go()
    assert list(failed) == ["first"] and "no such camera" in failed["first"]
    assert left == ["second"]


def test_a_machine_that_lacks_a_package_is_told_the_wheel(monkeypatch):
    monkeypatch.setattr(gpu, "WHEELS", {"torch": "torch", "no_such_package": "its-wheel"})
    assert gpu.missing_wheels() == ["its-wheel"]
