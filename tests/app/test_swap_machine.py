"""The promise that a hit is always of the generation that its answer names, whatever happens in between."""

import shutil
import tempfile
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from indexer.promotion import promote
from retriever.artifacts import SERVED
from retriever.store import Store
from tests.app.served import Server, add_corpus, publish_generation, serving

QUERY = "alpha beta"
PASSAGES = 5


class Killed(BaseException):
    """Ends a move of SERVED where a kill would."""


class Swapping(RuleBasedStateMachine):
    """Publishes, promotes, rolls back, kills and restarts, and searches after each.

    ``steps`` are the steps of the generations by number; ``history`` is what was served, the newest last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="hone-swapping-"))
        self.store = Store(self.folder / "store", create=True)
        self.steps: list[int] = []
        self.history: list[int] = []
        self.context: AbstractContextManager[Server] | None = None
        self.publish(1)
        promote(self.store, 0)
        self.history.append(0)
        self.start()

    def start(self) -> None:
        self.context = serving(self.store)
        self.server = self.context.__enter__()

    def teardown(self) -> None:
        if self.context is not None:
            self.context.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    @rule(seed=st.integers(1, 4))
    def publish(self, seed: int) -> None:
        """A rebuild: a generation of a corpus of its own appears; nobody serves it yet."""
        number = len(self.steps)
        texts = {f"g{number}-p{i}": f"{QUERY} {'gamma ' * i}" for i in range(PASSAGES)}
        corpus = add_corpus(self.store, self.folder / f"data{number}", texts)
        publish_generation(self.store, corpus, seed=seed, serve=False)
        self.steps.append(10 * seed)

    @rule(data=st.data(), force=st.booleans())
    def promote(self, data: st.DataObject, force: bool) -> None:
        """Ask over HTTP: an older step is refused unless forced."""
        number = data.draw(st.sampled_from(range(len(self.steps))))
        passes = force or self.steps[number] >= self.steps[self.history[-1]]
        self.server.post(f"/v1/generations/{number}/promote?force={force}", None, 200 if passes else 409)
        if passes and number != self.history[-1]:
            self.history.append(number)

    @rule()
    def roll_back(self) -> None:
        """Go back to what was served before, if anything."""
        if len(self.history) == 1:
            self.server.post("/v1/generations/rollback", None, 409)
            return
        self.history.pop()
        assert self.server.post("/v1/generations/rollback", None)["to"] == self.history[-1]

    @precondition(lambda self: len(self.steps) > 1)
    @rule(data=st.data(), survivors=st.integers(0, 2))
    def kill_a_promotion(self, data: st.DataObject, survivors: int) -> None:
        """The process that promotes is killed after some of its moves; SERVED is the old or the new one."""
        number = data.draw(st.sampled_from([n for n in range(len(self.steps)) if n != self.history[-1]]))
        store, moves = Store(self.store.root), list[str]()
        point = store.generations.point

        def fragile(pointer: str, to: int) -> None:
            if len(moves) == survivors:
                raise Killed
            point(pointer, to)
            moves.append(pointer)

        store.generations.point = fragile  # type: ignore[method-assign,assignment]  # a fault of this one alone
        with suppress(Killed):
            promote(store, number, force=True)
        if SERVED in moves:
            self.history.append(number)
        assert self.store.generations.pointed(SERVED) == self.history[-1]

    @rule()
    def restart(self) -> None:
        """The server ends and another one starts."""
        assert self.context is not None
        self.context.__exit__(None, None, None)
        self.start()

    @rule(data=st.data())
    def remove_what_nobody_needs(self, data: st.DataObject) -> None:
        """The refresher tidies up: what is served and what was served before stay."""
        kept = self.store.generations.pointers()
        self.store.retain("generations", keep=len(self.steps), grace_seconds=3600)
        assert self.store.generations.pointers() == kept

    @rule()
    def search(self) -> None:
        """Ask at once, be it in the middle of a swap."""
        answer = self.server.post("/v1/search", {"queries": [QUERY, QUERY], "top_k": PASSAGES})
        for hits in answer["results"]:
            assert {hit["id"].partition("-")[0] for hit in hits} == {f"g{answer['generation']}"}
            assert len(hits) == PASSAGES

    @invariant()
    def the_served_generation_is_what_answers(self) -> None:
        if self.context is None:
            return
        self.search()
        self.server.wait_for(self.history[-1])
        self.search()


TestSwapping = Swapping.TestCase
TestSwapping.settings = settings(max_examples=8, stateful_step_count=10, deadline=None, derandomize=True)
