"""The walk of docs/profile.md, run as it is written there, from prompts to a gallery; the pipelines
are real ones with tiny components.
"""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from ray_app.cli.main import main
from ray_app.reports.evaluation.result import EvaluationResult
from ray_app.runs import RunDirectory, current_rows
from tests.make.images import photo

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "profile.md").read_text(encoding="utf-8")
WALK = PAGE.partition("## Distinguish two generators")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"^\$ touchstone (.*)$", WALK, re.MULTILINE)
FILES = dict(re.findall(r"`([\w-]+\.yaml)`[^\n]*\n\n```yaml\n(.*?)```", WALK, re.DOTALL))
MADE = ("sd-3.5", "flux.1-dev")
PROMPTS = 32
TINY = ["--set", "sizes=[[32, 32], [48, 32]]", "--set", "steps=2", "--set", "precision=fp32"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What the walk's reader has: prompts, photographs, the page's two files; and the two pipelines
    as small as they get.
    """
    import torch

    from tests.datajobs.generate.pipelines import tiny_flux, tiny_sd3

    torch.set_num_threads(1)  # tiny tensors gain nothing from a second thread
    folder = tmp_path_factory.mktemp("walk")
    things, places = (
        ("cat", "dog", "house", "tree", "ship", "lamp", "road", "bird"),
        ("hill", "river", "wall", "field"),
    )
    (folder / "prompts.txt").write_text(
        "".join(f"a {thing} by the {place}\n" for thing in things for place in places)
    )
    (folder / "photos").mkdir()
    for seed in range(12):
        photo(64, 48, seed).save(folder / "photos" / f"{seed}.jpg", quality=80 + seed)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    models = {
        "sd-3.5": tiny_sd3(folder / "tiny-sd3"),
        "flux.1-dev": tiny_flux(folder / "tiny-flux"),
    }
    return folder, models


@pytest.mark.slow
@pytest.mark.ray
def test_every_command_of_the_walk(workplace, ray_cluster, monkeypatch):
    folder, models = workplace
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    for line in COMMANDS:
        words = shlex.split(line)
        if words[:2] == ["data", "generate"]:
            words += [*TINY, "--set", f"model={json.dumps(str(models[words[2]]))}"]
        assert main(words) == 0, line
    rows = list(current_rows(RunDirectory.open("run")))
    assert Counter(row["input"]["generator"] for row in rows) == dict.fromkeys(MADE, PROMPTS)
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["input"]["prompt"] and row["input"]["seed"] is not None for row in rows)
    assert {row["predicted_generator"] for row in rows} <= {*MADE, None}
    assert all(
        sorted(row["generator_ranking"]) == sorted(MADE) and row["generator_confidence"] is not None
        for row in rows
    )
    content = json.loads(Path("figures/metrics.json").read_text(encoding="utf-8"))
    named = EvaluationResult.from_dict(content).metrics.select(scope="identification")
    print({name: named[name].value for name in ("accuracy", "top_1", "abstained_known")})
    divided = json.loads(Path("divided/split.json").read_text(encoding="utf-8"))
    assert named["accuracy"].n == divided["splits"]["test"]["images"] > 4
    assert Path("gallery/index.html").exists()
