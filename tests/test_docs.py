"""The site is whole without building it: its pages, links, YAML, the messages that it explains, and a card each."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from megatron_af.config import Config
from megatron_af.config.loading import load_config
from tests.house import MODULES
from tests.pages import DOCS

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs"
PAGES = sorted(SITE.rglob("*.md"))
BLOCKS = [
    (f"{doc.name}-{number}", block)
    for doc in DOCS
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", doc.read_text(), flags=re.DOTALL))
]


class Loader(yaml.SafeLoader):
    """Of mkdocs.yml, which names no Python object here."""


def nav_pages() -> list[str]:
    def walk(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inner = entry.values() if isinstance(entry, dict) else entry
        assert not isinstance(entry, int | float | None)
        return [page for part in inner for page in walk(part)]  # type: ignore[union-attr]

    return walk(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])


def test_every_page_is_in_the_navigation_once() -> None:
    files = [*PAGES, *(SITE / "examples").glob("*.ipynb")]  # the site shows these, too: docs/notebooks.py
    assert sorted(nav_pages()) == sorted(file.relative_to(SITE).with_suffix(".md").as_posix() for file in files)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_its_title_and_links_stay_inside(page: Path) -> None:
    text = page.read_text()
    assert re.match(r"# \S", text)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.is_file() and there.is_relative_to(SITE), f"{target}: a site has no page outside docs/"
        if anchor:
            slugs = {
                re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower())).strip("-")
                for head in re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
            }
            assert anchor in slugs, f"{target}#{anchor}: there is no such heading"


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_yaml_is_what_the_tools_read(name: str, block: str, tmp_path: Path) -> None:
    """Every block parses; one whose keys are a run's is loaded, so that each key and value is known."""
    told = yaml.safe_load(block)
    assert told
    if isinstance(told, dict) and told.keys() <= {field.name for field in fields(Config)} | {"include"}:
        (tmp_path / "run.yaml").write_text(("" if "name" in told else "name: shown\n") + block)
        load_config(tmp_path / "run.yaml")


def test_api_pages_name_modules_that_are_there() -> None:
    pages = [page.read_text() for page in (SITE / "api").glob("*.md")]
    named = [name for text in pages for name in re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)]
    assert len(named) > 8 and set(named) <= MODULES.keys()


def test_messages_that_are_explained_are_said() -> None:
    """Each fragment in the first column stands in the code, as it is or around what is filled in."""
    source = "\n".join(path.read_text() for path in MODULES.values())
    text = re.sub(r'"\n\s*f?"', "", source)  # literals that stand one behind the other
    rows = re.findall(r"^\| (`.*?) \| ", (SITE / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    said = [part.strip() for row in rows for quoted in re.findall(r"`([^`]+)`", row) for part in quoted.split("…")]
    assert len(said) > 20
    assert [part for part in said if part and part not in text] == []


def test_what_is_promised_names_tests_that_are_there() -> None:
    """Files, and the tests in them, of every page; whoever promises something on the page of promises names one."""
    for page in PAGES:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"
            assert not name or re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.M), f"{page.name}: {name}"
    for table in re.findall(r"\| promise \| test \|\n\|.*\n((?:\|.*\n)+)", (SITE / "reliability.md").read_text()):
        assert [row for row in table.splitlines() if "`tests/" not in row.rpartition(" | ")[2]] == []


def test_every_configuration_has_a_card_that_says_what_was_run() -> None:
    lines = (SITE / "cards.md").read_text().splitlines()
    cards = {match[1]: match[2] for line in lines if (match := re.match(r"\| `(configs/[^`]+)` \| (\w+) \|", line))}
    found = (*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/cluster/*"))
    shipped = [path.relative_to(ROOT).as_posix() for path in found]
    assert sorted(cards) == sorted(shipped)
    assert set(cards.values()) <= {"verified", "unverified", "unsupported"}


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="the extra `docs` is not installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site/api/objective/index.html").is_file()
    page = (tmp_path / "site/examples/your_own_sound/index.html").read_text()
    assert "held-out recordings" in page and (tmp_path / "site/examples/your_own_sound.ipynb").is_file()
