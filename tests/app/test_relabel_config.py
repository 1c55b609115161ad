from pathlib import Path

import pytest

from app.relabel_config import open_judges, read_relabel_config
from retriever.errors import InputError
from retriever.protocols import Judge
from tests.stand_ins import write_json_lines
from tests.tiny_model import write_tiny_model
from tests.tiny_ranker import write_tiny_ranker

FILE = '[[judges]]\nkind = "file"\npath = "recorded.jsonl"\n'
HEAD = 'run = "run.toml"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "relabel.toml"
    path.write_text(text)
    write_json_lines(folder / "recorded.jsonl", [{"query": "q", "passage": "p", "relevant": True}])
    return path


def test_the_defaults(tmp_path: Path) -> None:
    config = read_relabel_config(written(tmp_path, HEAD + FILE))
    assert (config.action, config.check, config.negatives, config.suspects.top) == ("relabel", 0.0, None, 10)


def test_every_kind_of_judge_is_opened_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    write_tiny_ranker(tmp_path / "ranker")
    write_tiny_model(tmp_path / "model")
    text = f"""{HEAD}
    [[judges]]
    kind = "encoder"
    model = "model"
    threshold = 0.5
    [[judges]]
    kind = "ranker"
    model = "ranker"
    threshold = -0.1
    relative = true
    name = "cross"
    [[judges]]
    kind = "chat"
    url = "https://host/v1"
    model = "m-1"
    key_env = "A_KEY"
    {FILE}"""
    path = written(tmp_path, text)
    judges = open_judges(read_relabel_config(path), path)
    assert [judge.name for judge in judges] == ["encoder", "cross", "m-1", "file"]
    assert [judge.reads_positive for judge in judges] == [False, True, False, False]


def test_a_ranker_of_several_labels_judges_by_the_one_that_is_named(tmp_path: Path) -> None:
    write_tiny_ranker(tmp_path / "ranker", num_labels=2, id2label={0: "no", 1: "yes"})
    judge = '[[judges]]\nkind = "ranker"\nmodel = "ranker"\nthreshold = 0.5\n'

    def opened(label: str) -> Judge:
        path = written(tmp_path, HEAD + judge + label)
        return open_judges(read_relabel_config(path), path)[0]

    with pytest.raises(
        InputError, match=r"judges\.0: .*several labels; name the one that means relevant: 0 \(no\), 1 \(yes\)"
    ):
        opened("")
    named, numbered, other = (opened(f"label = {label}") for label in ('"yes"', "1", "0"))
    assert named.fingerprint == numbered.fingerprint != other.fingerprint


def test_the_example_in_the_documentation_is_valid() -> None:
    config = read_relabel_config(Path(__file__).parents[2] / "examples/relabel.toml")
    assert [judge["kind"] for judge in config.judges] == ["encoder", "chat"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD, "judges: write at least one table"),
        (FILE, "run: "),
        (HEAD + 'acton = "relabel"\n' + FILE, "unknown key acton; did you mean action"),
        (HEAD + 'action = "delete"\n' + FILE, "action = 'delete': choose from drop_negative, relabel"),
        (HEAD + "check = 2.0\n" + FILE, "check = 2.0"),
        (HEAD + "[suspects]\ntop = 0\n" + FILE, r"\[suspects\] top = 0"),
        (HEAD + '[pruning]\ngroup = "("\n' + FILE, "no regular expression"),
        (HEAD + '[pruning]\ngroup = "a"\n' + FILE, "into brackets"),
        (HEAD + '[[judges]]\nkind = "oracle"\n', "judges.0.kind = 'oracle': choose from ranker, encoder, chat, file"),
        (HEAD + '[[judges]]\nkind = "file"\npth = "x"\n', "judges.0: unknown key pth; did you mean path"),
        (HEAD + '[[judges]]\nkind = "ranker"\nmodel = "x"\n', "judges.0: threshold: "),
        (HEAD + '[[judges]]\nkind = "chat"\nurl = "x"\nmodel = "m"\n', "judges.0: url = 'x'"),
        (HEAD + '[[judges]]\nkind = "chat"\nurl = "https://h"\nmodel = "m"\nkey = "sk"\n', "unknown key key; did you"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        read_relabel_config(written(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "relabel.toml"))


@pytest.mark.parametrize(
    ("judges", "said"),
    [
        (FILE + FILE, "two judges have the same name"),
        (FILE + FILE + 'name = "other"\n', "two judges have the same fingerprint"),
        ('[[judges]]\nkind = "file"\npath = "none.jsonl"\n', "judges.0: .*none.jsonl"),
        ('[[judges]]\nkind = "chat"\nurl = "https://h"\nmodel = "m"\nkey_env = "HONE_NONE"\n', "judges.0: .*HONE_NONE"),
    ],
)
def test_a_judge_that_cannot_be_opened_is_named(tmp_path: Path, judges: str, said: str) -> None:
    path = written(tmp_path, HEAD + judges)
    with pytest.raises(InputError, match=said):
        open_judges(read_relabel_config(path), path)
