"""Stands for `hone train`: steps, checkpoints and events in a store, no model. It stops and resumes like the real one.

Arguments: store, steps, seconds a step, and a mood: "well", "fail", "fail when stopped", or a number of steps after
which it dies without a word.
"""

import signal
import sys
import time
from pathlib import Path
from threading import Event, Thread

from retriever.artifacts import CURRENT
from retriever.store import Store

EVERY = 5


def main() -> int:
    root, steps, pause, mood = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    Thread(target=stop_with_parent, args=(stop,), daemon=True).start()
    if mood == "fail when stopped":
        Store(root).log_event("refresher_started", source="trainer", pid=1)
        stop.wait(60)
    if mood.startswith("fail"):
        print("hone: the loss is nan; lower [train] learning_rate", file=sys.stderr)
        return 2
    store = Store(root)
    with store.checkpoints.writer():
        store.log_event("refresher_started", source="trainer", pid=1)
        return train(store, steps, pause, mood, stop)


def stop_with_parent(stop: Event) -> None:
    sys.stdin.read()
    stop.set()


def train(store: Store, steps: int, pause: float, mood: str, stop: Event) -> int:
    newest = store.checkpoints.get(CURRENT)
    step = 0 if newest is None else newest.facts["step"]
    if newest is None:
        save(store, 0, final=False)
    while step < steps:
        if stop.is_set():
            save(store, step, final=False)
            print(f"hone: interrupted at step {step}", file=sys.stderr)
            return 2
        time.sleep(pause)
        step += 1
        store.log_event("step", source="trainer", step=step, of=steps, steps_per_second=1.0)
        if mood.isdigit() and step == int(mood):
            return 1
        if step % EVERY == 0 and step < steps:
            save(store, step, final=False)
    save(store, steps, final=True)
    if stop.wait(60):  # the last generation is built, unless somebody asks to stop
        store.log_event("asked", source="trainer")
        return 2
    return 0


def save(store: Store, step: int, *, final: bool) -> None:
    with store.checkpoints.stage(parents={}) as draft:
        (draft.path / "weights").write_text(f"{store.root} {step}")
        name = "0" if step == 0 else f"{store.root.parent.name} {step}"
        draft.facts.update(step=step, final=final, weights_sha256=name, model={"name": "hash"})
    store.log_event("checkpoint", source="trainer", step=step, number=draft.number, final=final)


if __name__ == "__main__":
    sys.exit(main())
