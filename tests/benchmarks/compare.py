"""Each step of this project beside its plain formulation.

`python tests/benchmarks/compare.py [NAME ...]` times both in turn and writes
figures/benchmark.json. A case runs in a process of its own, and one that is in the file already is
replaced; so the file can be made in several sittings. What a case computes is checked before it is
timed, and by test_equal.py at small sizes.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from cases import CASES

from mfmda.core.files import read_json, write_json
from mfmda.core.runtime import git_commit, package_versions

root = Path(__file__).resolve().parents[2]
WAYS = ("plain", "ours")
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def seconds_of(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def tflop(run):
    "TFLOP of a run, without attention's own products, which torch does not count on a CPU."
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        run()
    return counted.get_total_flops() / 1e12


def peak_tflops(n=2048):
    "What this machine reaches where arithmetic is all there is: a product of two matrices."
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / min(seconds_of(lambda: a @ b) for _ in range(8)) / 1e12


def resident_mb(name):
    "MiB that this process holds (VmRSS), or has held at most (VmHWM)."
    lines = STATUS.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


def step_memory(run):
    "MiB that `run` needs at its peak, beyond what is there before, and its seconds."
    FORGET.write_text("5")
    before = resident_mb("VmRSS")
    took = seconds_of(run)
    return resident_mb("VmHWM") - before, took


def child(*words):
    "What this file prints in a process of its own."
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def weigh(name, way):
    "Memory of one way; in a process whose heap the other way has not cut into pieces."
    run = getattr(CASES[name].make(), way)
    run()
    ctypes.CDLL(None).malloc_trim(0)  # the optimiser's state is there before it is measured
    memory, took = step_memory(run)
    return {f"{way}_mb": memory, f"{way}_s": took}


def weigh_both(name):
    found = {}
    for way in WAYS:
        found |= child("--one", name, "--way", way)
    return found | dict(ratio=found["plain_mb"] / found["ours_mb"], runs=1)


def time_both(case, runs):
    "Medians and ranges of both ways, run in turn; their arithmetic, and its least time here."
    times = {way: [] for way in WAYS}
    for k in range(runs):
        for way in WAYS if k % 2 else WAYS[::-1]:
            times[way].append(seconds_of(getattr(case, way)))
    found = {}
    work = {way: tflop(getattr(case, way)) for way in WAYS}
    if work["ours"]:
        peak = peak_tflops()
        found = dict(tflop_plain=work["plain"], tflop_ours=work["ours"])
        found |= dict(peak_tflops=peak, floor_s=work["ours"] / peak)
    for way in WAYS:
        found[f"{way}_s"] = statistics.median(times[way])
        found[f"range_{way}_s"] = [min(times[way]), max(times[way])]
    return found | dict(ratio=found["plain_s"] / found["ours_s"], runs=runs)


def measure(name, runs):
    "Check a case, then time or weigh both ways: an entry of figures/benchmark.json."
    entry, load = CASES[name], os.getloadavg()[0]
    case = entry.make()
    case.same()
    about = dict(
        name=name,
        what=entry.what,
        device="cpu",
        shapes=case.shapes,
        dtype=case.dtype,
        goal=entry.goal,
        threads=torch.get_num_threads(),
        load_before=round(load, 2),
    )
    found = weigh_both(name) if case.memory else time_both(case, runs)
    return about | found | case.facts


def keep(out, new):
    "Put an entry in its place in the file, instead of an earlier one."
    entries = read_json(out) if out.exists() else []
    same = (new["name"], new["device"])
    others = [entry for entry in entries if (entry["name"], entry["device"]) != same]
    order = list(CASES)
    write_json(out, sorted([*others, new], key=lambda entry: order.index(entry["name"])))


def in_words(new):
    "A line about an entry."
    words = f"{new['name']:20} plain {new['plain_s']:8.3f} s  ours {new['ours_s']:8.3f} s"
    if "plain_mb" in new:
        words += f"  {new['plain_mb']:.0f} / {new['ours_mb']:.0f} MiB"
    return f"{words}  ratio {new['ratio']:.2f} (goal {new['goal']})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=root / "figures" / "benchmark.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.names) - set(CASES):
        known = ", ".join(CASES)
        parser.error(f"unknown case {', '.join(sorted(unknown))}; expected some of {known}")
    if args.one:
        (name,) = args.names
        found = weigh(name, args.way) if args.way else measure(name, args.runs)
        print("\n" + json.dumps(found))
        return
    for name in args.names or CASES:
        if name.startswith("memory_") and not FORGET.exists():
            print(f"{name:20} left out: it reads Linux's account of memory")
            continue
        new = child("--one", name, "--runs", str(args.runs))
        new |= dict(versions=package_versions(), commit=git_commit())
        keep(args.out, new)
        print(in_words(new), flush=True)


if __name__ == "__main__":
    main()
