"""Working ahead on threads, and memory that is reused."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.loading.prefetch import BufferPool, run_ahead


def test_run_ahead_keeps_the_order_and_the_bound():
    under_way, most = [0], [0]
    with ThreadPoolExecutor(4) as pool:

        def start(item):
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
            return item, [pool.submit(time.sleep, 0.002 * (item % 3)) for _ in range(2)]

        results = []
        for result in run_ahead(start, iter(range(20)), ahead=3):
            under_way[0] -= 1
            results.append(result)
    assert results == list(range(20))
    assert most[0] == 4, "three ahead, and the one whose result is awaited"


@pytest.mark.parametrize("ending", ["error", "break"])
def test_run_ahead_leaves_nothing_running(ending):
    running, started = set(), []
    with ThreadPoolExecutor(2) as pool:

        def work(item):
            running.add(item)
            try:
                time.sleep(0.02)
                if item == 2:
                    raise ValueError("two")
            finally:
                running.discard(item)

        def start(item):
            started.append(item)
            return item, [pool.submit(work, item)]

        results = run_ahead(start, range(100), ahead=4)
        assert [next(results), next(results)] == [0, 1]
        if ending == "error":
            with pytest.raises(ValueError, match="two"):
                next(results)
        else:
            results.close()
        assert not running
        assert len(started) <= 7


def test_a_buffer_is_reused_only_when_nothing_shares_it():
    pool = BufferPool((4, 6))
    first = pool.take()
    view, array = first[1:, :2], first.numpy()
    place = first.data_ptr()
    del first
    assert pool.take().data_ptr() != place
    del view
    held = pool.take()
    assert held.data_ptr() != place
    del array
    places = {held.data_ptr(), (second := pool.take()).data_ptr(), (third := pool.take()).data_ptr()}
    assert place in places
    assert second.shape == third.shape == (4, 6)
    assert all(address % 2 for address in places)  # where libjpeg-turbo decodes faster
