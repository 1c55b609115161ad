import pytest

from app.allowance import TokenWindow


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.5

    def __call__(self) -> float:
        return self.now


def test_tokens_come_back_when_the_window_has_passed() -> None:
    clock = Clock()
    window = TokenWindow(clock)
    assert window.spend("k", 1, 1000) == 0
    clock.now = 150.2
    assert window.spend("k", 998, 1000) == window.spend("other", 1000, 1000) == 0
    clock.now = 151.0
    wait = window.spend("k", 900, 1000)
    assert wait == 59, "once the 998 of second 150 are a minute old, not once the 1 of second 100 is"
    clock.now += 0.999 * wait
    assert window.spend("k", 900, 1000) > 0
    clock.now = 151.0 + wait
    assert window.spend("k", 900, 1000) == 0 < window.spend("k", 101, 1000)
    assert window.spend("k", 100, 1000) == 0


def test_what_one_second_takes_is_one_number() -> None:
    clock = Clock()
    window = TokenWindow(clock)
    for place in range(1000):
        clock.now = 100 + place / 10
        assert window.spend("k", 10_000, 10_000_000) == 0
    assert len(window._spent["k"]) <= 60


def test_more_than_the_limit_can_never_be_spent() -> None:
    with pytest.raises(ValueError, match="4 tokens where 3 may be spent"):
        TokenWindow().spend("k", 4, 3)
