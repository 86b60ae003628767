"""The stranger's walk (`make walk`) can be typed from README, stops where something is missing, and its last result is whole."""
import json

import pytest
import walk

readme = (walk.root / "README.md").read_text(encoding="utf-8")


def test_readme_holds_what_the_walk_types():
    commands = walk.typed(readme)
    assert commands[0] == "make demo" and all("  " not in c for c in commands)
    compile(walk.typed_python(readme), "README.md", "exec")
    with pytest.raises(AssertionError, match="no longer says 'mfmda adapt'"):
        walk.typed(readme.replace("mfmda adapt --source", "mfmda fit --source"))
    with pytest.raises(AssertionError, match="Python block"):
        walk.typed_python(readme.replace("segmenter = adapt(", "segmenter = fit("))


def test_last_walk_reached_its_end():
    found = json.loads((walk.root / "figures" / "walk.json").read_text(encoding="utf-8"))
    assert [s["step"] for s in found["steps"]] == ["clone", "environment, made first", "demo", "a folder of one's own", "doctor", "adapt", "segment", "report", "evaluate", "the Python block, from what is kept"]
    assert all(s["seconds"] > 0 for s in found["steps"]) and found["scores"]["disc_dice"] > .8 and found["commit"] and found["versions"]["torch"] and found["device"] and found["date"]
    assert {s["command"] for s in found["steps"]} - {"git clone", "", "python"} == {c for c in walk.typed(readme) if not c.startswith(". ")}   # as README says it now


def test_a_failing_step_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^walk: step 'adapt': 'mfmda adapt': ended with status 3: no such camera$"):
        walk.type_in(tmp_path, "adapt", "mfmda adapt", "echo first; echo no such camera >&2; exit 3")
    assert "first\nno such camera" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^walk: step 'segment': 'true': FileNotFoundError: .*segmentation.csv'$"):
        walk.type_in(tmp_path, "segment", "true", check=walk.check_segment)


def test_a_report_names_and_shows_each_photograph_and_fetches_nothing(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("P1 OD", "P2 OD"):
        (tmp_path / "photos" / f"{name}.jpg").touch()
    def said(page):
        (tmp_path / "report.html").write_text(page)
        try: walk.check_report(tmp_path, "")
        except AssertionError as e: return str(e)
    picture = '<img src="data:image/png;base64,AA" alt="{}: disc">'.format
    both = picture("P1 OD") + picture("P2 OD")
    assert said(both) is None and "no picture of P2 OD" in said(picture("P1 OD"))
    assert all("self-contained" in said(both + more) for more in ('<img src="more.png">', '<script src="a.js"></script>', '<link href="a.css">', "<style>p{background:url(a.png)}</style>"))


def test_a_strangers_shell_has_nothing_of_this_one(tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    given = {"PATH": f"{tmp_path}/venv/bin:/usr/bin", "PYTHONPATH": "x", "VIRTUAL_ENV": "x", "MAKEFLAGS": "-k", "MFMDA_DATA": "x", "OMP_NUM_THREADS": "1", "HOME": "/h", "PIP_CERT": "c", "PYTHON": "python3.12"}
    assert walk.strangers(given) == {"PATH": "/usr/bin", "HOME": "/h", "PIP_CERT": "c", "PYTHON": "python3.12"}


def test_how_busy_others_were():
    assert walk.others((0, 0, 0), (100, 170, 50)) == 1.2 and walk.others((0, 0, 0), (10, 19, 20)) == 0 and walk.others(None, None) is None
