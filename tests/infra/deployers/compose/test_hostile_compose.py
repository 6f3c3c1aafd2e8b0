"""Every way out of a container that a compose file offers: tests/data/hostile-compose, one file each.

`# refused:` says what is refused of it, line by line, before anything runs; `# env:` is a line of its .env.sample; NAME.over.yml
lies over NAME.yml.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.deployers.compose import admission
from infra.deployers.errors import DeployError
from tests.infra.deployers.compose.reading import load, write

pytestmark = pytest.mark.slow(0.1)

FOLDER = Path(__file__).resolve().parents[3] / "data" / "hostile-compose"
FILES = sorted(path for path in FOLDER.glob("*.yml") if not path.name.endswith(".over.yml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_refused_before_anything_runs(path: Path, tmp_path: Path) -> None:
    text, over = path.read_text(), path.with_suffix(".over.yml")
    refused, env = (re.findall(rf"^# {word}: (.+)$", text, re.MULTILINE) for word in ("refused", "env"))
    assert refused
    files = {"compose.over.yml": over.read_text()} if over.exists() else {}
    env += [f"COMPOSE_FILE={':'.join(['compose.yml', *files])}"] if files else []
    folder = write(tmp_path, text, **{".env.sample": "\n".join(env), ".git/config": "x"}, **files)
    (folder / "link").symlink_to("/etc/hostname")
    try:
        read = load(folder, trusted=False)
    except DeployError as error:
        assert error.kind in ("forbidden", "invalid_recipe")
        assert [words for words in refused if words not in error.message] == []
        return
    found = sorted(str(problem) for problem in admission.problems(read))
    assert len(found) == len(refused)
    for said, words in zip(found, sorted(refused), strict=True):
        assert said.startswith(words)
    with pytest.raises(DeployError, match="The recipe asks for what is not allowed in a run"):
        admission.check(read)


def test_every_overlay_lies_over_a_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} - {path.name for path in FILES} <= {f"{path.stem}.over.yml" for path in FILES}
