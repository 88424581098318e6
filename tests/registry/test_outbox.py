"""What is kept of a server that is away: whole, in order, under our ids until the server's are known."""

from multiprocessing import get_context

import pytest
from filelock import FileLock

from moe_compress.errors import RegistryAwayError
from moe_compress.registry.outbox import Outbox


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path, "https://ann:secret@mlflow.example.com:5000")


def test_entries_stay_in_order_and_name_the_server_without_its_password(outbox, monkeypatch):
    times = iter([3, 2, 2, 9, 1])  # a clock that is set back
    monkeypatch.setattr("time.time_ns", lambda: next(times))
    for number in range(5):
        outbox.add("request", {"name": "SetTag", "body": {"number": number}})
    read = [outbox.read(path) for path in outbox.entries()]
    assert [entry["body"]["number"] for entry in read] == [0, 1, 2, 3, 4]
    assert outbox.folder.name == "https-mlflow.example.com-5000"
    assert outbox.server == "https://mlflow.example.com:5000"


def test_a_promised_id_is_replaced_once_the_servers_is_known(outbox):
    assert outbox.find_id("real") == "real"
    outbox.promise("ours")
    assert (outbox.find_id("ours"), outbox.with_found_ids('{"run_id": "ours"}')) == ("", '{"run_id": "ours"}')
    outbox.fulfil("ours", "theirs")
    assert (outbox.find_id("ours"), outbox.with_found_ids('{"run_id": "ours"}')) == (
        "theirs",
        '{"run_id": "theirs"}',
    )


def test_what_is_refused_is_put_aside_with_its_reason(outbox):
    outbox.add("artifact", {"run_id": "r", "path": "gone"})
    outbox.refuse(outbox.entries()[0], "it is not there")
    assert outbox.entries() == []
    (aside,) = (outbox.folder / "refused").iterdir()
    assert outbox.read(aside) == {"kind": "artifact", "run_id": "r", "path": "gone", "refused": "it is not there"}


def hold(path, ready, done):
    with FileLock(path):
        ready.set()
        done.wait(30)


def test_two_processes_do_not_send_at_once(outbox):
    outbox.folder.mkdir()
    context = get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(outbox.folder / ".lock", ready, done))
    other.start()
    assert ready.wait(30)
    try:
        with pytest.raises(RegistryAwayError, match="another process is sending"), outbox.locked(0):
            pass
    finally:
        done.set()
        other.join()
    with outbox.locked(0):
        pass
