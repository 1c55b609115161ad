from pathlib import Path

from retriever.durable import exclusive
from tests.app.command_line import Hone

COMPARE = """\
base = "run.toml"
seeds = [1]
baseline = "static"
[budget]
steps = 6
[systems.static.refresh]
trigger = "once"
[systems.refreshed]
"""


def write(tiny: Path, text: str = COMPARE) -> Path:
    Path("run.toml").write_text((tiny / "run.toml").read_text())
    Path("compare.toml").write_text(text)
    return Path("compare.toml")


def test_a_bad_comparison_is_one_line_and_makes_nothing(hone: Hone, tiny: Path) -> None:
    complaint = hone("compare", write(tiny, COMPARE.replace("trigger", "triger"))).complaint
    assert complaint == (
        "compare.toml: unknown key systems.static.refresh.triger; did you mean systems.static.refresh.trigger?"
    )
    assert "no.toml: cannot be read" in hone("compare", "no.toml").complaint
    assert not Path("compare").exists() and not Path("no").exists()


def test_what_does_not_fit_the_data_starts_no_run(hone: Hone, tiny: Path) -> None:
    text = COMPARE + "negatives.depth = 61\n"
    answer = hone("compare", write(tiny, text), "--out", "here")
    assert (
        answer.complaint
        == "compare.toml: systems.refreshed: negatives.depth = 61, but the corpus has 60 passages; write no more"
    )
    assert not (Path("here") / "runs").exists()


def test_two_comparisons_in_one_folder_are_refused(hone: Hone, tiny: Path) -> None:
    write(tiny)
    with exclusive(Path("compare/lock"), "this comparison"):
        assert "is already writing this comparison" in hone("compare", "compare.toml").complaint
