"""The plan of a run, as Snakemake reads it."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mfmda.core.files import read_json
from mfmda.study.plan import plan, run_step
from mfmda.study.profiles import Layout, load_profile

root = Path(__file__).resolve().parent.parent
START = "mfmda.use.cli import main"  # in the shell command of every step


@pytest.fixture
def clone(tmp_path):
    "What a fresh clone holds for Snakemake: steps and package, but no runs/."
    for name in ("Snakefile", "settings.ini"):
        shutil.copy(root / name, tmp_path)
    left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "mfmda"):
        shutil.copytree(root / name, tmp_path / name, ignore=left_out)
    return tmp_path


def snakemake(folder, *options, **config):
    "As the Makefile calls it, with empty `rows` and `targets` unless they are asked for."
    config = dict(rows="", targets="") | config
    words = [sys.executable, "-m", "snakemake", *options, "--config"]
    words += [f"{key}={value}" for key, value in config.items()]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


def dry_run(folder, profile, *options, **config):
    return snakemake(folder, "--cores", "1", "--dry-run", *options, profile=profile, **config)


def planned(run):
    "Names of the steps in the job table of a dry run."
    rows = [line.split() for line in run.stdout.splitlines() if line.startswith("step_")]
    return {row[0] for row in rows if row[-1] == "1"}


def shell_commands(run):
    "The words of each step's command, from a dry run with --printshellcmds."
    lines = run.stdout.splitlines() + run.stderr.splitlines()
    return [shlex.split(line) for line in lines if START in line]


def marker(entry):
    "The file that says that a step is done."
    return Path(f"{entry['output']}.done")


def test_a_clone_with_committed_results_still_runs_every_step(clone):
    "Committed figures do not mean that this machine has run."
    figures = clone / "figures" / "mini"
    figures.mkdir(parents=True)
    for name in ("run.json", "per_image.csv", "table1.csv", "table1.md"):
        (figures / name).touch()
    run = dry_run(clone, "mini")
    assert run.returncode == 0, run.stderr
    assert len(planned(run)) == len(plan(load_profile("mini")))


def test_several_processes_share_each_step_but_the_report(clone):
    "A report computes nothing that several processes could share."
    commands = shell_commands(dry_run(clone, "mini", "--printshellcmds", processes=2))
    assert len(commands) == len(plan(load_profile("mini")))
    alone = [words for words in commands if words[-2:] == ["--processes", "1"]]
    shared = [words for words in commands if words[-2:] == ["--processes", "2"]]
    assert len(shared) == len(commands) - 1
    assert alone == commands[-1:] and "6_report" in alone[0]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_profile_file_whose_path_has_a_space(clone, suffix):
    "The path reaches each step's command as one word, quotation marks or not."
    folder = clone / "my profiles"
    folder.mkdir()
    file = folder / f"it's mine.{suffix}"
    file.write_text(json.dumps(dict(base="smoke")))  # which is YAML too
    run = dry_run(clone, file, "--printshellcmds")
    assert run.returncode == 0, run.stderr
    commands = shell_commands(run)
    assert len(commands) == len(plan(load_profile(file))) == len(planned(run))
    for words in commands:
        assert words[words.index("--profile") + 1] == str(file)


def test_the_cluster_profile_plans_every_step_of_every_seed(clone):
    "The plugin that submits jobs is not installed here, so only the plan is looked at."
    shutil.copytree(root / "cluster", clone / "cluster")
    run = dry_run(clone, "paper", "--profile", "cluster", "--executor", "dryrun")
    assert run.returncode == 0, run.stderr
    assert len(planned(run)) == len(plan(load_profile("paper")))
    assert "step_3_translate_seed2_messidor_base2" in planned(run)


def test_a_finished_step_is_not_run_again(clone):
    "A marker beside a result takes its step out of the plan, and no other."
    steps = plan(load_profile("mini"), clone)
    first = marker(next(iter(steps.values())))
    first.parent.mkdir(parents=True)
    first.touch()
    assert len(planned(dry_run(clone, "mini"))) == len(steps) - 1


def test_a_further_row_adds_only_its_own_steps(clone):
    "What a row has in common with Table 1 is not trained twice."
    base = planned(dry_run(clone, "mini"))
    more = planned(dry_run(clone, "mini", rows="no_style no_align", targets="phantom_b"))
    assert more - base == {
        "step_2_adapt_seed0_phantom_b_no_style",
        "step_3_translate_seed0_phantom_b_no_style",
        "step_5_segment_seed0_phantom_b_no_style",
        "step_5_segment_seed0_phantom_b_no_align",
    }
    assert base < more


@pytest.mark.parametrize(
    "profile, rows, says",
    [
        ("minni", "", "profile='minni' is unknown"),
        ("mini", "no_luck", "row='no_luck': unknown"),
    ],
)
def test_an_unknown_name_is_one_clear_line(clone, profile, rows, says):
    "A misspelt profile or row is named; nothing is begun."
    run = dry_run(clone, profile, rows=rows)
    assert run.returncode != 0
    assert says in run.stderr and "Traceback" not in run.stderr
    assert not (clone / "runs").exists()


def test_a_step_that_fails_under_snakemake_leaves_earlier_results(clone):
    "Snakemake removes what a rule declares before it runs: never the results of an earlier run."
    profile = clone / "broken.json"
    absent = dict(name="clinic", train="folder:absent", test="folder:absent")
    profile.write_text(json.dumps(dict(base="smoke", source=absent)))
    step = plan(load_profile(profile), clone)["1_source_ddpm", 0, "", ""]
    old = step["output"]
    old.parent.mkdir(parents=True)
    old.write_text('{"earlier": 1}')
    marker(step).touch()
    name = "step_1_source_ddpm_seed0"
    run = snakemake(clone, "--cores", "1", "--forcerun", name, "--until", name, profile=profile)
    assert run.returncode != 0 and "absent" in run.stdout + run.stderr
    assert old.read_text() == '{"earlier": 1}' and not marker(step).exists()


def test_more_cores_do_not_run_a_finished_step_again(clone):
    "How many cores share the work is no reason to repeat it."
    # the parameters of each step are noted down, as of a run with one core
    noted = snakemake(clone, "--cores", "1", "--touch", profile="mini")
    assert noted.returncode == 0, noted.stderr
    for entry in plan(load_profile("mini"), clone).values():
        done = marker(entry)
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
    run = snakemake(clone, "--cores", "2", "--dry-run", profile="mini")
    assert "Nothing to be done" in run.stdout + run.stderr, run.stdout[-2000:]
    assert not planned(run)


def test_a_target_without_masks_is_translated_to_and_reported(tmp_path):
    "Ten images and nothing else: from the smoke run's models to Table 4, by the same notebooks."
    smoke, blind = Layout("smoke", root), tmp_path / "blind.json"
    made = [smoke.source_ddpm(), smoke.foundation(0)]
    if not all((folder / "result.json").exists() for folder in made):
        pytest.skip("no smoke run under runs/: the smoke stage of `make test` makes one")
    pool = "phantom:phantom_b?seed=1&start=20000&count=10"
    blind.write_text(json.dumps(dict(base="smoke", targets=dict(clinic=dict(pool=pool)))))
    own = Layout("blind", tmp_path)
    for folder, copy in zip(made, (own.source_ddpm(), own.foundation(0))):
        shutil.copytree(folder, copy)
    parameters = dict(profile=str(blind), root=str(tmp_path))
    for step in ("2_adapt", "3_translate"):
        run_step(step, tmp_path / f"{step}.ipynb", **parameters, seed=0, target="clinic")
    run_step("6_generation", tmp_path / "6_generation.ipynb", **parameters)

    figures = tmp_path / "figures" / "blind"
    drawn = {
        f"{name}.{kind}" for name in ("fig3", "fig4_translation") for kind in ("png", "svg")
    }
    tables = {"table4.md", "recipes.csv", "translation.csv", "run.json"}
    assert {p.name for p in figures.iterdir()} == drawn | tables
    table = (figures / "table4.md").read_text(encoding="utf-8")
    assert "| clinic (10 shots) | default recipe |" in table
    assert "Dice of a source-trained scorer" in table
    assert read_json(figures / "run.json")["targets"] == ["clinic"]
