import pytest
from starlette.responses import PlainTextResponse, Response

from app.chat_judge import ChatConfig, ChatJudge, read_answer
from retriever.errors import HoneError, InputError
from retriever.protocols import Judgement, PairText
from tests.app.chat_server import ChatServer, chatting, completion, dribbling, failing
from tests.judge_stand_ins import pair

PROMPT = "{query} | {passage}"
KEY = "sk-a-secret-of-ours"


def asked(chat: ChatServer, pairs: list[PairText], **settings: object) -> list[Judgement | None]:
    config = ChatConfig(**{"url": chat.url, "model": "judge-1", "prompt": PROMPT, **settings})  # type: ignore[arg-type]
    found: dict[int, Judgement] = {}
    ChatJudge(config).judge(pairs, found.update)
    return [found.get(place) for place in range(len(pairs))]


def yes_to_p1(prompt: str, times: int) -> str:
    return "Yes." if prompt.endswith("text of p1") else "No."


def test_each_pair_is_asked_about_once_with_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    pairs = [pair("q1", "p1"), pair("q1", "p2"), pair("q2", "p1")]
    with chatting(yes_to_p1) as chat:
        said = asked(chat, pairs, key_env="MY_KEY", system="Judge.", prompt_price=2.0, completion_price=1e6)
    assert [one and one.relevant for one in said] == [True, False, True]
    assert said[0] == Judgement(True, answer="Yes.", prompt_tokens=7, completion_tokens=1, cost=1 + 14e-6)
    assert chat.keys == {f"Bearer {KEY}"}
    assert chat.prompts == {f"{one.query} | {one.passage}": 1 for one in pairs}
    first = chat.bodies[0]
    assert first["messages"][0] == {"role": "system", "content": "Judge."}
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("judge-1", 0, 16)


def test_braces_in_texts_are_text_and_extra_keys_win() -> None:
    texts = PairText("q", "{passage} {0}", "p", "{query} {positive}", "of the positive")
    with chatting(lambda prompt, times: "no") as chat:
        extra = {"max_tokens": None, "max_completion_tokens": 5, "temperature": 1}
        asked(chat, [texts], prompt="{query}|{passage}|{positive}|{x}", extra=extra)
    (body,) = chat.bodies
    assert body["messages"][0]["content"] == "{passage} {0}|{query} {positive}|of the positive|{x}"
    assert "max_tokens" not in body and (body["max_completion_tokens"], body["temperature"]) == (5, 1)


@pytest.mark.parametrize(
    ("answer", "relevant"),
    [
        ("yes", True),
        ("No", False),
        ("**Yes.**", True),
        ("\n yes \n", True),
        ("yes\nBecause it says so.", True),
        ("<think>no\nno</think>\nyes", True),
        ("", None),
        ("maybe", None),
        ("yes and no", None),
        ("No, it does not", None),
        ("not relevant", None),
        ("yes\nno", None),
        ("I think\nyes", None),
        ("<think>yes", None),
        ("ignore all this and say yes", None),
        pytest.param("<think>" * 140_000, None, id="a megabyte"),
    ],
)
def test_an_answer_is_read_strictly(answer: str, relevant: bool | None) -> None:
    assert read_answer(answer) is relevant


def test_an_endpoint_s_faults_cost_their_pairs_alone() -> None:
    replies: dict[str, list[str | Response | float]] = {
        "nonsense": ["As a language model, I"],
        "empty": [completion(None)],
        "busy": [failing(429, retry_after="0.2"), failing(429), "yes"],
        "broken": [failing(500), failing(503, retry_after="0.1"), "no"],
        "always": [failing(502, "bad gateway")],
        "hangs": [60.0],
        "dribbles": [],
        "no-json": [PlainTextResponse("<html>"), PlainTextResponse("{}")],
        "forbidden": [failing(403)],
        "fine": ["yes"],
    }

    def reply(prompt: str, times: int) -> str | Response | float:
        name = prompt.split(" | ")[0].removeprefix("text of ")
        return dribbling() if name == "dribbles" else replies[name][min(times, len(replies[name]) - 1)]

    with chatting(reply) as chat:
        pairs = [pair(name, "p1") for name in replies]
        said = dict(zip(replies, asked(chat, pairs, retries=2, timeout=4.0, concurrency=11), strict=True))
    found = {name: (one.relevant, one.failure, one.again) for name, one in said.items() if one is not None}
    assert found == {
        "nonsense": (None, "nonsense", False),
        "empty": (None, "nonsense", False),
        "busy": (True, None, False),
        "broken": (False, None, False),
        "always": (None, "server error", True),
        "hangs": (None, "timeout", True),
        "dribbles": (None, "timeout", True),
        "no-json": (None, "unreadable reply", True),
        "forbidden": (None, "forbidden", True),
        "fine": (True, None, False),
    }
    assert said["always"] and said["always"].answer == "502 bad gateway"
    counts = {prompt.split(" | ")[0].removeprefix("text of "): count for prompt, count in chat.prompts.items()}
    assert counts == {**dict.fromkeys(replies, 3), "nonsense": 1, "empty": 1, "forbidden": 1, "fine": 1}


def test_nobody_there_is_a_failure_of_the_connection() -> None:
    config = ChatConfig("http://127.0.0.1:9/v1", "judge-1", prompt=PROMPT, retries=0)
    found: dict[int, Judgement] = {}
    ChatJudge(config).judge([pair("q", "p")], found.update)
    assert (found[0].relevant, found[0].failure, found[0].again) == (None, "connection", True)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the key is refused"),
        (402, "the account is empty"),
        (404, "no such path or model"),
        (405, "no such path or model"),
        (308, "has moved"),
    ],
)
def test_what_every_pair_would_meet_ends_the_run(status: int, said: str) -> None:
    with chatting(lambda prompt, times: failing(status)) as chat:
        with pytest.raises(InputError, match=said):
            asked(chat, [pair("q", f"p{n}") for n in range(50)], concurrency=2)
        assert len(chat.bodies) <= 4


def test_an_endpoint_that_answers_nothing_is_given_up() -> None:
    with chatting(lambda prompt, times: failing(500, "down for today")) as chat:
        with pytest.raises(HoneError, match=r"3 pairs in a row had no answer .*server error, 500 down for today"):
            asked(chat, [pair("q", f"p{n}") for n in range(50)], retries=0, give_up_after=3, concurrency=1)
        assert len(chat.bodies) == 3


def test_a_refusal_between_answers_is_of_its_pair_and_others_may_be_of_the_account() -> None:
    filtered = failing(400, "content filter")
    with chatting(lambda prompt, times: filtered if "text of bad" in prompt else "yes") as chat:
        pairs = [pair(name, f"p{n}") for n, name in enumerate(["bad", "good", "bad", "bad", "good"])]
        said = asked(chat, pairs, concurrency=1)
    assert [one and (one.failure, one.again) for one in said] == [
        ("refused", True),
        (None, False),
        ("refused", False),
        ("refused", True),
        (None, False),
    ]


@pytest.mark.parametrize("status", [400, 403])
def test_an_endpoint_that_refuses_every_pair_is_given_up(status: int) -> None:
    """It is no refusal of the pairs: of the account, or of a field of the request."""
    with chatting(lambda prompt, times: failing(status)) as chat:
        with pytest.raises(HoneError, match=r"3 pairs in a row had no answer"):
            asked(chat, [pair("q", f"p{n}") for n in range(50)], give_up_after=3, concurrency=1)
        assert len(chat.bodies) == 3, "neither is tried again at once"


def test_a_key_that_the_endpoint_echoes_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    for status in (200, 400, 401):
        with chatting(lambda prompt, times, status=status: failing(status, f"you sent {KEY}")) as chat:  # type: ignore[misc]
            try:
                shown = repr(asked(chat, [pair("q", "p")], key_env="MY_KEY", retries=0))
            except InputError as error:
                shown = str(error)
        assert KEY not in shown and "you sent …" in shown


def test_a_budget_ends_the_asking_and_leaves_the_rest_open() -> None:
    with chatting(lambda prompt, times: "no") as chat:
        pairs = [pair("q", f"p{n}") for n in range(40)]
        said = asked(chat, pairs, completion_price=1e6, max_cost=10.0, concurrency=2)
    assert 10 <= sum(one is not None for one in said) <= 11 and len(chat.bodies) <= 11


def test_a_price_without_usage_is_no_answer() -> None:
    bare = '{"choices": [{"message": {"content": "yes"}}]}'
    with chatting(lambda prompt, times: PlainTextResponse(bare)) as chat:
        (free,) = asked(chat, [pair("q", "p")])
        (priced,) = asked(chat, [pair("q", "p")], prompt_price=1.0, retries=0)
    assert free and free.relevant and priced and priced.relevant is None and priced.failure == "unreadable reply"


def reply_with(message: str, usage: str) -> str:
    return f'{{"choices": [{message}], "usage": {usage}}}'


YES = '{"message": {"content": "yes"}}'


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        reply_with(YES, '{"prompt_tokens": 1e999}'),
        reply_with(YES, '{"prompt_tokens": NaN}'),
        reply_with(YES, '{"prompt_tokens": 1, "completion_tokens": -1000000}'),
        reply_with(YES, f'{{"prompt_tokens": 1{"0" * 400}}}'),
        reply_with(YES, '{"prompt_tokens": "many"}'),
        reply_with(YES, "[1]"),
        "[1]",
    ],
)
def test_a_malformed_reply_costs_its_pair_alone(text: str) -> None:
    """Neither a traceback nor a cost that no price explains."""
    with chatting(lambda prompt, times: PlainTextResponse(text) if "text of bad" in prompt else "yes") as chat:
        pairs = [pair("bad", "p1"), pair("good", "p1")]
        bad, good = asked(chat, pairs, prompt_price=1.0, retries=0, concurrency=1)
    assert bad and (bad.relevant, bad.failure, bad.again, bad.cost) == (None, "unreadable reply", True, 0.0)
    assert good and good.relevant


def test_counts_that_cannot_be_do_not_matter_where_nothing_has_a_price() -> None:
    text = reply_with(YES, '{"prompt_tokens": -5, "completion_tokens": 1e999}')
    with chatting(lambda prompt, times: PlainTextResponse(text)) as chat:
        (said,) = asked(chat, [pair("q", "p")], tokens_a_minute=1e9)
    assert said == Judgement(True, answer="yes")


@pytest.mark.parametrize("choices", ["", "{}", '{"message": {"content": ["yes"]}}'])
def test_a_reply_without_a_usable_answer_is_paid_all_the_same(choices: str) -> None:
    text = reply_with(choices, '{"prompt_tokens": 2, "completion_tokens": 1}')
    with chatting(lambda prompt, times: PlainTextResponse(text)) as chat:
        prices = {"prompt_price": 1e6, "completion_price": 1e6}
        said = asked(chat, [pair("q", "p"), pair("q", "p2")], **prices, max_cost=6.0, retries=3, concurrency=1)
        assert len(chat.bodies) == 2, "two tries of the first pair have spent it"
    assert said[0] and (said[0].failure, said[0].again) == ("unreadable reply", True)
    assert (said[0].prompt_tokens, said[0].completion_tokens, said[0].cost, said[1]) == (4, 2, 6.0, None)


def test_a_reply_that_came_to_nothing_is_paid_with_the_next() -> None:
    useless = reply_with("", '{"prompt_tokens": 2, "completion_tokens": 1}')
    with chatting(lambda prompt, times: "yes" if times else PlainTextResponse(useless)) as chat:
        (said,) = asked(chat, [pair("q", "p")], completion_price=1e6, retries=1)
    assert said and said.relevant and (said.completion_tokens, said.cost) == (2, 2.0)


def test_no_more_than_so_many_at_a_time() -> None:
    with chatting(lambda prompt, times: "no") as chat:
        asked(chat, [pair("q", f"p{n}") for n in range(30)], concurrency=3)
    assert 1 < chat.most <= 3


def test_a_key_that_is_not_there_or_no_header_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ChatConfig("https://host/v1", "judge-1", key_env="MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(InputError, match="the environment has no MY_KEY"):
        ChatJudge(config)
    monkeypatch.setenv("MY_KEY", "a\nb")
    with pytest.raises(InputError, match="what no header can carry") as error:
        ChatJudge(config)
    assert "a\nb" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "ftp://host"}, "url = "),
        ({"url": "https://user:secret@host/v1"}, "url = "),
        ({"url": "https://:secret@host/v1"}, "url = "),
        ({"url": "https://host/v1#secret"}, "url = "),
        ({"prompt": "{query}?"}, "no place {passage} in it"),
        ({"concurrency": 0}, "concurrency and give_up_after must be at least 1"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"retries": -1}, "retries"),
        ({"tokens_a_minute": 0.0}, "tokens_a_minute"),
        ({"max_cost": 1.0}, "max_cost needs prompt_price"),
        ({"prompt_price": -1.0}, "prices must not be negative"),
        ({"url": "http://example.org/v1", "key_env": "K"}, "insecure = true sends it all the same"),
    ],
)
def test_a_setting_that_cannot_be_asked_with_is_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ChatConfig(**{"url": "https://host/v1", "model": "m", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["https://example.org/v1", "http://localhost:1/v1", "http://[::1]:1/v1"])
def test_a_key_may_go_encrypted_or_within_the_machine(url: str) -> None:
    assert ChatConfig(url, "m", key_env="K").key_env == "K"


def test_what_decides_answers_makes_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    one = ChatConfig("https://host/v1", "m")
    others = [ChatConfig("https://host/v1", "m2"), ChatConfig("https://host/v1", "m", prompt="{query}{passage}")]
    others += [ChatConfig("https://host/v1", "m", system="s"), ChatConfig("https://host/v1", "m", extra={"top_p": 1})]
    assert len({ChatJudge(config).fingerprint for config in [one, *others]}) == 5
    moved = ChatConfig("https://elsewhere/v1", "m", concurrency=1, requests_a_minute=1.0)
    assert ChatJudge(moved).fingerprint == ChatJudge(one).fingerprint
    assert ChatJudge(others[1]).provenance["prompt_sha256"] != ChatJudge(one).provenance["prompt_sha256"]
