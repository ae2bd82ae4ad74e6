"""What a process keeps: made once, by one, without anybody else waiting for it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusionflow import fusion
from fusionflow.backbones import resolve_weights
from fusionflow.config import METHODS
from fusionflow.kept import Kept


def test_each_thing_is_made_once():
    kept = Kept()
    assert [kept.get(key, lambda key=key: [key]) for key in "aba"] == [["a"], ["b"], ["a"]]
    assert kept.made == 2


def test_threads_that_want_the_same_get_the_same():
    kept, start = Kept(), threading.Barrier(8)

    def get(_):
        start.wait(timeout=60)
        return kept.get("net", object)

    with ThreadPoolExecutor(8) as pool:
        things = list(pool.map(get, range(8)))
    assert len(set(map(id, things))) == kept.made == 1


def test_making_one_keeps_nobody_from_another():
    kept, begun, other_is_there = Kept(), threading.Event(), threading.Event()
    kept.get("ready", lambda: "ready")

    def slow():
        begun.set()
        assert other_is_there.wait(timeout=60)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(kept.get, "slow", slow)
        assert begun.wait(timeout=60)
        assert kept.get("ready", pytest.fail) == "ready"
        assert kept.get("new", lambda: "new") == "new"
        other_is_there.set()
        assert making.result(timeout=60) == "slow"


def test_those_used_last_are_kept():
    kept = Kept(most=2)
    for key in "abac":
        kept.get(key, lambda key=key: key)
    assert kept.made == 3
    for key in "ac":
        kept.get(key, pytest.fail)
    kept.get("b", lambda: "b")
    assert kept.made == 4


def test_what_is_being_made_is_not_dropped():
    kept, begun, enough = Kept(most=1), threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert enough.wait(timeout=60)
        return "slow"

    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(kept.get, "slow", slow)
        assert begun.wait(timeout=60)
        for key in "abc":
            kept.get(key, lambda key=key: key)
        waiting = pool.submit(kept.get, "slow", lambda: "made twice")
        enough.set()
        assert making.result(timeout=60) == waiting.result(timeout=60) == "slow"
    assert kept.made == 4


def test_what_failed_is_made_by_the_next():
    kept = Kept()
    with pytest.raises(FileNotFoundError):
        kept.get("net", lambda: Path("/nonexistent").read_bytes())
    assert kept.made == 0
    assert kept.get("net", lambda: "net") == "net"


def test_networks_are_counted():
    method = METHODS["dwt-vgg19-l1"]
    weights = resolve_weights("random:987", "vgg19")
    before = fusion.networks_made()
    for _ in range(2):
        fusion.load_network(method, weights)
    assert fusion.networks_made() == before + 1
