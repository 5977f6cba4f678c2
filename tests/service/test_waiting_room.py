import threading
import time

import pytest

from jobs.store import CHANGED, connect
from service.waiting_room import Room, Wait


@pytest.fixture
def redis(redis_url):
    redis = connect(redis_url)
    yield redis
    redis.close()


@pytest.fixture
def room(redis, wait_until):
    """A room that hears what is published."""
    room = Room(redis, seats=3)
    room.ticket()
    # The subscription itself counts as a change of everything.
    wait_until(lambda: room.ticket() > 0, "the room to listen")
    yield room
    room.close()


class Guest:
    """Somebody who waits."""

    def __init__(self, room, key="a", seconds=30.0, ticket=None):
        self.woken = threading.Semaphore(0)
        ticket = room.ticket() if ticket is None else ticket
        wait = Wait(key, ticket, time.monotonic() + seconds)
        self.leave = room.sit_down(wait, self.woken.release)

    def is_woken(self, seconds=0.5):
        return self.woken.acquire(timeout=seconds)


def test_a_guest_is_woken_once_by_a_change_of_its_job_and_no_other(room, redis):
    guest, other = Guest(room), Guest(room, "b")

    redis.publish(CHANGED, "a")
    assert guest.is_woken(5)
    redis.publish(CHANGED, "a")

    assert not guest.is_woken()
    assert not other.is_woken(0)
    assert room.guests == 1


def test_whoever_read_the_job_before_it_changed_is_not_let_in(room, redis, wait_until):
    ticket = room.ticket()
    redis.publish(CHANGED, "a")
    wait_until(lambda: room.ticket() > ticket, "the change to be heard")

    assert Guest(room, ticket=ticket).leave is None
    assert Guest(room, "b", ticket=ticket).leave is not None
    assert Guest(room).leave is not None


def test_a_change_that_is_no_longer_remembered_counts_as_one_of_everything(
    room, redis, wait_until, monkeypatch
):
    monkeypatch.setattr("service.waiting_room._MOST_REMEMBERED", 2)
    ticket = room.ticket()
    for key in "abc":
        redis.publish(CHANGED, key)
    wait_until(lambda: room.ticket() == ticket + 3, "the changes to be heard")

    assert Guest(room, "never changed", ticket=ticket).leave is None
    assert Guest(room, "never changed", ticket=ticket + 1).leave is not None


def test_a_guest_whose_time_is_over_is_woken(room):
    started = time.monotonic()

    assert Guest(room, seconds=0.3).is_woken(5)

    assert 0.3 <= time.monotonic() - started < 2
    assert room.guests == 0


def test_whoever_leaves_is_not_woken_and_frees_its_seat(room, redis):
    guests = [Guest(room) for _ in range(3)]
    assert not room.has_seat

    guests[0].leave()
    guests[0].leave()
    assert room.has_seat
    redis.publish(CHANGED, "a")

    assert guests[1].is_woken(5)
    assert not guests[0].is_woken(0)
    assert room.guests == 0


def test_what_was_not_heard_wakes_everybody(room, redis):
    guests = [Guest(room, key) for key in "ab"]

    redis.client_kill_filter(_type="pubsub")

    assert all(guest.is_woken(5) for guest in guests)


def test_a_room_that_closes_sends_all_away_and_lets_nobody_in(room):
    guest = Guest(room)

    room.close()

    assert guest.is_woken(5)
    assert Guest(room).leave is None
    assert not room.has_seat


def test_a_thread_can_wait_too(room, redis):
    wait = Wait("a", room.ticket(), time.monotonic() + 30)
    changer = threading.Timer(0.2, redis.publish, (CHANGED, "a"))
    started = time.monotonic()
    changer.start()

    room.block(wait)

    changer.join()
    assert 0.1 < time.monotonic() - started < 5
    assert room.guests == 0
