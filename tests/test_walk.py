"""The stranger's walk (`make walk`) can be typed from README, stops where something is missing, and
its last result is whole."""

import json

import pytest
import walk

readme = (walk.root / "README.md").read_text(encoding="utf-8")


def test_readme_holds_what_the_walk_types():
    "Commands and Python block of README can be taken from it as they stand."
    commands = walk.typed(readme)
    assert commands[0] == "make demo" and commands[1] == walk.ENTER
    assert [command.split()[1] for command in commands[2:]] == [
        "doctor",
        "check",
        "adapt",
        "segment",
        "report",
        "evaluate",
    ]
    assert not any("#" in command or "\n" in command for command in commands)
    compile(walk.typed_python(readme), "README.md", "exec")


def test_the_scripts_of_the_walk_are_python():
    "What the walk runs between the commands can be compiled."
    for script in (walk.FOLDERS, walk.FACTS):
        compile(script, "walk.py", "exec")


@pytest.mark.parametrize(
    "words",
    ["make demo ", walk.ENTER, *(f"{name} -" for name in walk.CHECKS if "mfmda" in name)],
)
def test_a_readme_without_a_command_is_noticed(words):
    "README may not lose a command that the walk types."
    command = words.removesuffix("-").strip()
    assert readme.count(f"\n{command}") == 1
    with pytest.raises(AssertionError, match=f"no longer says '{command}'"):
        walk.typed(readme.replace(f"\n{command}", "\nmake tea"))


@pytest.mark.parametrize(
    "words", ["from mfmda import adapt", "segmenter = adapt(", "segment_folder(segmenter"]
)
def test_a_readme_without_its_python_is_noticed(words):
    "README may not lose the call, or where it is imported from."
    assert words in readme
    with pytest.raises(AssertionError, match="Python block"):
        walk.typed_python(readme.replace(words, "print("))


STEPS = [
    "clone",
    "environment, made first",
    "demo",
    "a folder of one's own",
    "doctor",
    "check",
    "adapt",
    "segment",
    "report",
    "evaluate",
    "the Python block, from what is kept",
]


def test_last_walk_reached_its_end():
    "figures/walk.json is of a whole walk, with the commands that README has now."
    found = json.loads((walk.root / "figures" / "walk.json").read_text(encoding="utf-8"))
    assert [step["step"] for step in found["steps"]] == STEPS
    assert all(step["seconds"] > 0 for step in found["steps"])
    assert found["scores"]["disc_dice"] > 0.8
    assert found["versions"]["torch"]
    assert all(found[fact] for fact in ("commit", "device", "date"))
    by_hand = {"git clone", "", "python"}
    commands = {step["command"] for step in found["steps"]} - by_hand
    assert commands == set(walk.typed(readme)) - {walk.ENTER}


def test_a_failing_step_is_one_line(tmp_path, capsys):
    "A command that fails ends the walk with its last words, under what it said."
    said = r"^walk: step 'adapt': 'mfmda adapt': ended with status 3: no such camera$"
    with pytest.raises(SystemExit, match=said):
        code = "echo first; echo no such camera >&2; exit 3"
        walk.type_in(tmp_path, "adapt", "mfmda adapt", code)
    assert "first\nno such camera" in capsys.readouterr().out


def test_a_step_that_leaves_too_little_is_one_line(tmp_path):
    "A command that succeeds without its files ends the walk too."
    said = r"^walk: step 'segment': 'true': FileNotFoundError: .*segmentation.csv'$"
    with pytest.raises(SystemExit, match=said):
        walk.type_in(tmp_path, "segment", "true", check=walk.check_segment)


@pytest.fixture
def judge(tmp_path):
    "What the walk says against a report of two photographs; None where it is content."
    (tmp_path / "photos").mkdir()
    for name in ("P1 OD", "P2 OD"):
        (tmp_path / "photos" / f"{name}.jpg").touch()

    def against(page):
        (tmp_path / "report.html").write_text(page)
        try:
            walk.check_report(tmp_path, "")
        except AssertionError as error:
            return str(error)

    return against


def pictures(*names):
    return "".join(f'<img src="data:image/png;base64,AA" alt="{n}: disc">' for n in names)


def test_a_report_shows_each_photograph(judge):
    "A photograph that a report leaves out is named."
    assert judge(pictures("P1 OD", "P2 OD")) is None
    assert "no picture of P2 OD" in judge(pictures("P1 OD"))


@pytest.mark.parametrize(
    "more",
    [
        '<img src="more.png">',
        '<script src="a.js"></script>',
        '<link href="a.css">',
        "<style>p{background:url(a.png)}</style>",
    ],
)
def test_a_report_fetches_nothing(judge, more):
    "A report is one file, whatever it is handed on with."
    assert "self-contained" in judge(pictures("P1 OD", "P2 OD") + more)


def test_a_strangers_shell_has_nothing_of_this_one(tmp_path):
    "No virtual environment and no variable of a test; what pip and a home need stays."
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    ours = (
        "PYTHONPATH VIRTUAL_ENV MAKEFLAGS MFMDA_DATA OMP_NUM_THREADS HF_HUB_OFFLINE MPLBACKEND"
    )
    theirs = dict(HOME="/h", PIP_CERT="c", PYTHON="python3.12")
    path = f"{tmp_path}/venv/bin:/usr/bin"
    given = dict.fromkeys(ours.split(), "x") | theirs | dict(PATH=path)
    assert walk.strangers(given) == theirs | dict(PATH="/usr/bin")


@pytest.mark.parametrize("after, cores", [((100, 170, 50), 1.2), ((10, 19, 20), 0)])
def test_how_busy_others_were(after, cores):
    "Work of all cores less one's own, over the time; never below zero."
    assert walk.others((0, 0, 0), after) == cores


def test_where_the_system_does_not_tell():
    "A system without /proc/stat has no number."
    assert walk.others(None, None) is None
