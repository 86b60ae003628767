"""The plan of a run, as Snakemake reads it."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mfmda.config import Layout, load_profile, read_json
from mfmda.pipeline import plan, run_step

root = Path(__file__).resolve().parent.parent


@pytest.fixture
def clone(tmp_path):
    "What a fresh clone holds for Snakemake: the steps and committed result files, but no runs/."
    for name in ("Snakefile", "settings.ini"):
        shutil.copy(root / name, tmp_path)
    for name in ("nbs", "mfmda"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return tmp_path


def dry_run(folder, profile, rows="", targets="", *options, **config):
    "As the Makefile calls it, with empty `rows` and `targets` unless they are asked for."
    return subprocess.run([sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", *options, "--config", f"profile={profile}", f"rows={rows}", f"targets={targets}", *(f"{k}={v}" for k, v in config.items())],
                          cwd=folder, capture_output=True, text=True)


def planned(run):
    "Names of the steps in the job table of a dry run."
    return {line.split()[0] for line in run.stdout.splitlines() if line.startswith("step_") and line.split()[-1] == "1"}


def test_a_clone_with_committed_results_still_runs_every_step(clone):
    steps = plan(load_profile("mini"))
    (clone / "figures" / "mini").mkdir(parents=True)
    for name in ("run.json", "per_image.csv", "table1.csv", "table1.md"):
        (clone / "figures" / "mini" / name).touch()
    run = dry_run(clone, "mini")
    assert run.returncode == 0, run.stderr
    assert "Nothing to be done" not in run.stdout + run.stderr
    assert len(planned(run)) == len(steps)


def test_several_processes_share_each_step_but_the_report(clone):
    run = dry_run(clone, "mini", "", "", "--printshellcmds", processes=2)
    commands = [line for line in run.stdout.splitlines() + run.stderr.splitlines() if "mfmda.command import main" in line]
    assert len(commands) == len(plan(load_profile("mini")))
    assert [c.endswith("--processes 2") for c in commands] == ["step 6_report" not in c for c in commands] and "step 6_report" in commands[-1]


def test_the_cluster_profile_plans_every_step_of_every_seed(clone):
    shutil.copytree(root / "cluster", clone / "cluster")
    run = dry_run(clone, "paper", "", "", "--profile", "cluster", "--executor", "dryrun")          # the plugin that submits jobs is not installed here
    assert run.returncode == 0, run.stderr
    assert len(planned(run)) == len(plan(load_profile("paper"))) and "step_3_translate_seed2_messidor_base2" in planned(run)


def test_a_finished_step_is_not_run_again(clone):
    steps = plan(load_profile("mini"), clone)
    first = Path(f"{next(iter(steps.values()))['output']}.done")
    first.parent.mkdir(parents=True)
    first.touch()
    run = dry_run(clone, "mini")
    assert len(planned(run)) == len(steps) - 1


def test_a_further_row_adds_only_its_own_steps(clone):
    base, more = planned(dry_run(clone, "mini")), planned(dry_run(clone, "mini", "no_style no_align", "phantom_b"))
    assert more - base == {"step_2_adapt_seed0_phantom_b_no_style", "step_3_translate_seed0_phantom_b_no_style", "step_5_segment_seed0_phantom_b_no_style", "step_5_segment_seed0_phantom_b_no_align"}
    assert "row='no_luck': unknown" in dry_run(clone, "mini", "no_luck").stderr


def test_an_unknown_profile_is_one_clear_line(clone):
    run = dry_run(clone, "minni")
    assert run.returncode != 0 and "profile='minni' is unknown" in run.stderr and "Traceback" not in run.stderr
    assert not (clone / "runs").exists()


def test_a_step_that_fails_under_snakemake_leaves_earlier_results(clone):
    "Snakemake removes what a rule declares before it runs it; the results of an earlier run must not be among it."
    profile = clone / "broken.json"
    profile.write_text(json.dumps(dict(base="smoke", source=dict(name="clinic", train="folder:absent", test="folder:absent"))))
    old = plan(load_profile(profile), clone)["1_source_ddpm", 0, "", ""]["output"]
    old.parent.mkdir(parents=True)
    old.write_text('{"earlier": 1}')
    Path(f"{old}.done").touch()
    run = subprocess.run([sys.executable, "-m", "snakemake", "--cores", "1", "--forcerun", "step_1_source_ddpm_seed0", "--until", "step_1_source_ddpm_seed0",
                          "--config", f"profile={profile}"], cwd=clone, capture_output=True, text=True)
    assert run.returncode != 0 and "absent" in run.stdout + run.stderr
    assert old.read_text() == '{"earlier": 1}' and not Path(f"{old}.done").exists()


def test_a_target_without_masks_is_translated_to_and_reported(tmp_path):
    "Ten images and nothing else: from the smoke run's models to Table 4, by the same notebooks."
    smoke, blind = Layout("smoke", root), tmp_path / "blind.json"
    made = [folder(0) for folder in (smoke.source_ddpm, smoke.foundation)]
    if not all((folder / "result.json").exists() for folder in made):
        pytest.skip("no smoke run under runs/: the smoke stage of `make test` makes one")
    pool = "phantom:phantom_b?seed=1&start=20000&count=10"
    blind.write_text(json.dumps(dict(base="smoke", targets=dict(clinic=dict(pool=pool)))))
    for folder in made:
        shutil.copytree(folder, Layout("blind", tmp_path).seed(0) / folder.name)
    parameters = dict(profile=str(blind), root=str(tmp_path))
    for step in ("2_adapt", "3_translate"):
        run_step(step, tmp_path / f"{step}.ipynb", **parameters, seed=0, target="clinic")
    run_step("6_generation", tmp_path / "6_generation.ipynb", **parameters)
    figures = tmp_path / "figures" / "blind"
    assert {p.name for p in figures.iterdir()} == {f"fig{n}.{kind}" for n in ("3", "4_translation") for kind in ("png", "svg")} | {"table4.md", "recipes.csv", "translation.csv", "run.json"}
    table = (figures / "table4.md").read_text()
    assert "| clinic (10 shots) | default recipe |" in table and "Dice of a source-trained scorer" in table
    assert read_json(figures / "run.json")["targets"] == ["clinic"]


def test_more_cores_do_not_run_a_finished_step_again(clone):
    steps = plan(load_profile("mini"), clone)
    command = [sys.executable, "-m", "snakemake", "--config", "profile=mini", "rows=", "targets="]
    assert subprocess.run([*command, "--cores", "1", "--touch"], cwd=clone, capture_output=True).returncode == 0
    for entry in steps.values():
        marker = Path(f"{entry['output']}.done")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    subprocess.run([*command, "--cores", "1", "--touch"], cwd=clone, capture_output=True, check=True)          # takes note of each step as done with one core
    run = subprocess.run([*command, "--cores", "2", "--dry-run"], cwd=clone, capture_output=True, text=True)
    assert "Nothing to be done" in run.stdout + run.stderr and not planned(run), run.stdout[-2000:]
