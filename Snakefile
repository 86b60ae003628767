# The papermill steps of a profile, and those of further rows, in the order of their files:
# `snakemake --cores 1 --config profile=mini`. A finished step is not run again; an interrupted one
# resumes from its checkpoint.
import shutil
import sys

from mfmda.core.files import InputError, fingerprint
from mfmda.study.plan import STEPS, plan
from mfmda.study.profiles import load_profile, settings_of


def words(name):
    "A list that was given as one string, such as rows=\"no_style no_align\"."
    given = config.get(name)
    return [] if given is None else str(given).split()


PROFILE = str(config.get("profile", "mini"))
PROCESSES = int(config.get("processes", 1))  # of each step, under torchrun: one for each GPU
# a job has several processes, a GPU or a node of a cluster to itself: then it takes all cores
WHOLE = PROCESSES > 1 or shutil.which("nvidia-smi") or workflow.resource_settings.nodes
try:
    GRAPH = plan(
        load_profile(PROFILE), rows=words("rows"), targets=words("targets"), seeds=words("seeds")
    )
except InputError as error:
    sys.exit(f"mfmda: {error}")


def marker(key):
    "Snakemake deletes a rule's outputs before it runs again, so they are markers: results stay."
    return f"{GRAPH[key]['output']}.done"


# these run side by side, before and beside the other steps
BESIDE = ("1_source_ddpm", "4_foundation", "5_rivals")
SEGMENT = [key for key in GRAPH if key[0] == "5_segment"]
# the last job, which no other keeps company
ALONE = SEGMENT[-1] if len(SEGMENT) % workflow.cores == 1 else None


def share(step):
    "Jobs that may run at the same time share the cores."
    if WHOLE:
        return workflow.cores
    beside = BESIDE if step in BESIDE else (step,)
    return max(1, workflow.cores // sum(key[0] in beside for key in GRAPH))


def threads_of(key):
    """How many threads a step computes with.

    A second thread wins less than two jobs lose by sharing cores (a diffusion model in training
    fell from 8 steps a second to 2), so more than a share is for a last job alone.
    """
    whole = WHOLE or key == ALONE
    return max(1, workflow.cores // PROCESSES) if whole else share(key[0])


def command(key):
    "The words of `mfmda step …`."
    step, seed, target, row = key
    words = ["step", step, "--profile", PROFILE, "--seed", str(seed)]
    words += ["--target", target] if target else []
    return words + (["--row", row] if row else [])


def settings(key):
    "A fingerprint of what the step reads: when it changes, the step runs again."
    step, seed, target, row = key
    return fingerprint(str(settings_of(load_profile(PROFILE, row).model_dump(), step, target)))


rule all:
    input: marker(next(reversed(GRAPH)))


for key, entry in GRAPH.items():
    rule:
        name: "_".join(("step", key[0], f"seed{key[1]}", *key[2:])).rstrip("_")
        input: [marker(need) for need in entry["needs"]]
        output: touch(marker(key))
        params:
            words=command(key),
            settings=settings(key),
            start="import sys; from mfmda.use.cli import main; sys.exit(main())",
        # not among the params, whose change makes a finished step run again
        resources:
            processes=1 if key[0].startswith("6_") else PROCESSES,
            at_most=threads_of(key),
        threads: share(key[0])
        # a step for all targets before the next step: no target's chain is left to run alone
        priority: len(STEPS) - STEPS.index(key[0])
        shell:
            "OMP_NUM_THREADS={resources.at_most} MKL_NUM_THREADS={resources.at_most} "
            "OMP_WAIT_POLICY=PASSIVE {sys.executable:q} -c {params.start:q} {params.words:q} "
            "--processes {resources.processes}"
