# The papermill steps of a profile, and those of further rows, in the order of their files: `snakemake --cores 1 --config profile=mini`.
# A finished step is not run again; an interrupted one resumes from its checkpoint.
import shutil, sys
from mfmda.config import InputError, fingerprint, load_profile, settings_of
from mfmda.pipeline import STEPS, plan

PROFILE = str(config.get("profile", "mini"))
PROCESSES = int(config.get("processes", 1))   # of each step, under torchrun: one for each GPU
WHOLE = PROCESSES > 1 or shutil.which("nvidia-smi") or workflow.resource_settings.nodes   # a job has several processes, a GPU or a node of a cluster to itself, and takes all cores
try:
    SETTINGS = load_profile(PROFILE)
    GRAPH = plan(SETTINGS, rows=str(config.get("rows") or "").split(), targets=str(config.get("targets") or "").split(), seeds=str("" if config.get("seeds") is None else config["seeds"]).split())
except InputError as error:
    sys.exit(f"mfmda: {error}")


# Snakemake deletes the outputs of a rule before it runs it again, so they are markers: results stay until new ones replace them
def marker(key):
    return f"{GRAPH[key]['output']}.done"


rule all:
    input: marker(next(reversed(GRAPH)))


BESIDE = ("1_source_ddpm", "4_foundation", "5_rivals")   # these run side by side, before and beside the other steps
SEGMENT = [key for key in GRAPH if key[0] == "5_segment"]
ALONE = SEGMENT[-1] if len(SEGMENT) % workflow.cores == 1 else None   # the last job, which no other keeps company

for key, entry in GRAPH.items():
    step, seed, target, row = key
    share = workflow.cores if WHOLE else max(1, workflow.cores // sum(other in (BESIDE if step in BESIDE else (step,)) for other, *_ in GRAPH))   # jobs that may run at the same time share the cores
    rule:
        name: "_".join(("step", step, f"seed{seed}", target, row)).rstrip("_")
        input: [marker(need) for need in entry["needs"]]
        output: touch(marker(key))
        params: options=f"--profile {PROFILE} --seed {seed}" + (f" --target {target}" if target else "") + (f" --row {row}" if row else ""), step=step, settings=fingerprint(str(settings_of(load_profile(PROFILE, row).to_dict(), step, target)))
        # not among the params, whose change makes a finished step run again
        resources: processes=1 if step.startswith("6_") else PROCESSES, at_most=max(1, workflow.cores // PROCESSES) if WHOLE or key == ALONE else share
        threads: share
        priority: len(STEPS) - STEPS.index(step)   # a step for all targets before the next step: no target's chain is left to run alone at the end
        # a second thread wins less than two jobs lose by sharing cores (a diffusion model in training fell from 8 steps a second to 2), so more than a share is for a last job alone
        shell: "OMP_NUM_THREADS={resources.at_most} MKL_NUM_THREADS={resources.at_most} OMP_WAIT_POLICY=PASSIVE {sys.executable} -c 'import sys; from mfmda.command import main; sys.exit(main())' step {params.step} {params.options} --processes {resources.processes}"
