# The six papermill steps of a profile, in the order of their files: `snakemake --cores 1 --config profile=mini`.
# A finished step is not run again; an interrupted one resumes from its checkpoint.
import sys
from mfmda.config import InputError, load_profile
from mfmda.pipeline import plan

PROFILE = str(config.get("profile", "mini"))
try:
    GRAPH = plan(load_profile(PROFILE))
except InputError as error:
    sys.exit(f"mfmda: {error}")


def files(key):
    return [str(GRAPH[need]["output"]) for need in GRAPH[key]["needs"]]


rule all:
    input: str(next(reversed(GRAPH.values()))["output"])


for key, entry in GRAPH.items():
    step, seed, target = key
    rule:
        name: "_".join(("step", step, f"seed{seed}", target)).rstrip("_")
        input: files(key)
        output: str(entry["output"])
        params: options=f"--profile {PROFILE} --seed {seed}" + (f" --target {target}" if target else ""), step=step
        threads: 1
        shell: "{sys.executable} -c 'import sys; from mfmda.pipeline import main; sys.exit(main())' step {params.step} {params.options}"
