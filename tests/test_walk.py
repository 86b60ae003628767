"""The stranger's walk (`make walk`) can be typed from README, and its last result is whole."""
import json

import pytest
import walk


def test_readme_holds_what_the_walk_types():
    commands = walk.typed((walk.root / "README.md").read_text(encoding="utf-8"))
    assert commands[0] == "make demo" and all("  " not in c for c in commands)
    with pytest.raises(AssertionError, match="no longer says 'mfmda adapt'"):
        walk.typed((walk.root / "README.md").read_text(encoding="utf-8").replace("mfmda adapt --source", "mfmda fit --source"))


def test_last_walk_reached_its_end():
    found = json.loads((walk.root / "figures" / "walk.json").read_text(encoding="utf-8"))
    assert [s["step"] for s in found["steps"]] == ["clone", "environment", "demo", "a folder of one's own", "doctor", "adapt", "segment", "report", "evaluate"]
    assert all(s["seconds"] > 0 for s in found["steps"][1:]) and found["scores"]["disc_dice"] > .8 and found["commit"] and found["versions"]["torch"]
