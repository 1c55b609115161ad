"""What people read: commands on pages exist with their flags, links lead somewhere, keys of a run are there."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from app.cli import build_app
from app.config import RunConfig, check_keys
from app.relabel_config import RelabelConfig
from retriever.errors import InputError

ROOT = Path(__file__).parents[1]
PAST = ("log.md", "CHANGELOG.md")
"""What was run then, by commands of then."""
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md")])
CODE = re.compile(r"`([^`\n]+)`|^ {4}(\S.*)$", re.MULTILINE)
COMMAND = re.compile(r"(?:^|; |&& |[A-Z_]+=\S+ )hone ([a-z][^;#&|…]*)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SETTING = re.compile(r"`(?:\[([\w.]+)\] )?([a-z][\w.]* = [^`\n…]+)`")
"""A line of TOML in a sentence, perhaps with the name of its table; one with … is a form, not to be copied."""
TOML_BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_in(text: str) -> Iterator[str]:
    """Give each command line of hone that ``text`` shows as code, without the word hone."""
    for inline, block in CODE.findall(text):
        yield from (found.strip() for found in COMMAND.findall(inline or block))


def problem(line: str) -> str | None:
    """Return what is wrong with a command line: no such command, or a flag that it does not have."""
    command: Any = typer.main.get_command(build_app())
    words = line.split()
    while words and hasattr(command, "commands") and words[0][0] not in "-|":
        if words[0] not in command.commands:
            return f"there is no {words[0]}"
        command = command.commands[words.pop(0)]
    known = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"--help"}
    unknown = [flag for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", " ".join(words)) if flag not in known]
    return f"no {unknown[0]}" if unknown else None


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in PAST], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_of_a_page_exist_with_their_flags(page: Path) -> None:
    wrong = {line: found for line in commands_in(page.read_text()) if (found := problem(line)) is not None}
    assert not wrong


def test_a_wrong_command_or_flag_would_be_found() -> None:
    assert problem("trian run.toml") == "there is no trian"
    assert problem("train run.toml --resum") == "no --resum"
    assert problem("export negatives run.toml OUT --format tevatron") is None
    assert list(commands_in("say `HONE_STORE=x hone serve`\n\n    hone init DATA   # then\n")) == ["serve", "init DATA"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_of_the_project(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]


def tables() -> list[Any]:
    found = [(page, block) for page in PAGES for block in TOML_BLOCK.findall(page.read_text())]
    examples = [(path, path.read_text()) for path in sorted(ROOT.glob("examples/*.toml"))]
    return [pytest.param(text, id=f"{path.name}-{number}") for number, (path, text) in enumerate(found + examples)]


@pytest.mark.parametrize("text", tables())
def test_keys_of_a_run_that_a_page_shows_exist(text: str) -> None:
    table = tomllib.loads(text)
    if "suspects" in table:
        check_keys(table, RelabelConfig, "page")
        return
    runs = list(table["systems"].values()) if "systems" in table else [table]
    for run in runs:
        check_keys(run, RunConfig, "page")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in PAST], ids=lambda page: str(page.relative_to(ROOT))
)
def test_settings_in_the_sentences_of_a_page_are_toml(page: Path) -> None:
    """A float without a digit before its point is none, and two settings are not one line."""
    tables = {field.name for field in fields(RunConfig)}
    for name, setting in SETTING.findall(page.read_text()):
        try:
            table = tomllib.loads(setting)
        except tomllib.TOMLDecodeError as error:
            pytest.fail(f"{setting}: {error}")
        if name in tables:
            check_keys({name: table}, RunConfig, str(page))


def test_a_wrong_key_would_be_found() -> None:
    with pytest.raises(InputError, match="triger"):
        check_keys({"refresh": {"triger": "once"}}, RunConfig, "page")
