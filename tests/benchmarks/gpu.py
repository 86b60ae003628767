"""What a GPU without a network can do in minutes: `python tests/benchmarks/gpu.py --help`.

Notebooks are executed cell by cell, without papermill and Jupyter, several at a time.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path


def run_cells(notebook: Path, **parameters):
    "Execute a notebook's code; its parameters are replaced after the cell that has them."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = dict(__name__="__main__")
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(parameters)
    plt.close("all")


def work(name: str, notebook: str, parameters: dict) -> tuple[str, float, str]:
    "One notebook in a worker; its name, its seconds, and what went wrong."
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        run_cells(Path(notebook), **parameters)
        wrong = ""
    except BaseException:
        wrong = traceback.format_exc()
    return name, time.perf_counter() - start, wrong


def walk(jobs: dict, workers: int, seconds: float, log):
    "Run jobs, name -> (needs, notebook, parameters), each after what it needs; returns what failed."
    os.environ["OMP_NUM_THREADS"] = "1"
    end, done, failed, running = time.monotonic() + seconds, set(), {}, {}
    spawned = multiprocessing.get_context("spawn")
    pool, second, again = ProcessPoolExecutor(workers, spawned), None, set()
    while len(done) + len(failed) < len(jobs) and time.monotonic() < end:
        for name, (needs, notebook, parameters) in jobs.items():
            new = name not in done and name not in failed and name not in running
            if new and set(needs) <= done:
                running[name] = pool.submit(work, name, notebook, parameters)
        if not running:
            break
        finished, _ = wait(running.values(), timeout=1.0, return_when=FIRST_COMPLETED)
        for name in [n for n, f in running.items() if f in finished]:
            try:
                _, took, wrong = running.pop(name).result()
            except Exception as error:  # the worker died
                took, wrong = 0.0, repr(error)
            print(f"{name}: {took:.0f} s{' FAILED' if wrong else ''}", file=log, flush=True)
            if wrong:
                print(wrong, file=log, flush=True)
            if wrong and name not in again and time.monotonic() < end:
                # once more in a fresh process, without CUDA graphs
                again.add(name)
                os.environ["MFMDA_CUDA_GRAPHS"] = "0"
                second = second or ProcessPoolExecutor(3, spawned)
                running[name] = second.submit(work, name, *jobs[name][1:])
            elif wrong:
                failed[name] = wrong
            else:
                done.add(name)
    left = [n for n in jobs if n not in done and n not in failed]
    if left:
        print("not done:", *left, file=log, flush=True)
    for used in filter(None, (pool, second)):
        for process in list((used._processes or {}).values()):
            process.kill()
        used.shutdown(wait=False, cancel_futures=True)
    return failed, left


def jobs_of(profile: str, root: str, prefix: str = "", skip=()) -> dict:
    "The steps of a profile, as `walk` takes them."
    from mfmda.study.plan import experiments_folder, plan
    from mfmda.study.profiles import load_profile

    graph, jobs = plan(load_profile(profile), Path(root)), {}

    def called(key):
        return prefix + " ".join(str(part) for part in key if part != "")

    for key, facts in graph.items():
        step, seed, target, row = key
        if step in skip:
            continue
        given = dict(profile=profile, root=root)
        if not step.startswith("6"):
            given |= dict(seed=seed)
        if target:
            given |= dict(target=target)
        if row:
            given |= dict(row=row)
        needs = [called(k) for k in facts["needs"] if k[0] not in skip]
        jobs[called(key)] = needs, str(experiments_folder() / f"{step}.ipynb"), given
    return jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profiles", nargs="+")
    parser.add_argument("--root", default=".")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=400)
    args = parser.parse_args()
    jobs = {}
    for profile in args.profiles:
        jobs |= jobs_of(profile, args.root, f"{profile}: ")
    failed, left = walk(jobs, args.workers, args.seconds, sys.stdout)
    sys.exit(bool(failed or left))


if __name__ == "__main__":
    main()
