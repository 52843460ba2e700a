"""Reading ahead and writing behind: in order, with errors where they belong, and nothing left running."""

import threading
import time

import pytest

from aq2_pipeline.io.beside import read_ahead, writing_behind


def counted(n, made, closed=None):
    """Yield numbers, and note each before; an error after the last."""
    try:
        for k in range(n):
            made.append(k)
            yield k
        message = "no more"
        raise LookupError(message)
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


def eventually(condition):
    """Wait until something is so, and not for ever."""
    last = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.001)


def test_the_next_item_is_made_while_one_is_used():
    """One more item is made than was taken, on another thread; an error comes where its item would."""
    made, taken = [], []
    with read_ahead(counted(3, made)) as items:
        for n in (1, 2, 3):
            taken.append(next(items))
            eventually(lambda n=n: len(made) == min(n + 1, 3))
        with pytest.raises(LookupError, match="no more"):
            next(items)
    assert (taken, made) == ([0, 1, 2], [0, 1, 2])


def test_a_reader_that_stops_early_closes_what_it_read():
    """Where the block ends before the items do, the generator is closed, and no thread is left."""
    closed, before = [], threading.active_count()

    def stopped():
        with read_ahead(counted(9, [], closed)) as items:
            next(items)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert len(closed) == 1
    assert threading.active_count() == before


def test_jobs_run_in_order_one_at_a_time():
    """Each job begins when the one before is done, and each result comes out once, in order."""
    done, at_work = [], threading.Event()

    def job(k):
        assert not at_work.is_set()
        at_work.set()
        done.append(k)
        at_work.clear()
        return k

    with writing_behind() as behind:
        told = [each for k in range(20) for each in behind.begin(lambda k=k: job(k))]
        told += behind.finish()
        assert behind.finish() == []
    assert done == told == list(range(20))


def test_few_jobs_wait():
    """Where jobs take longer than what they are made of, whoever makes it waits, too."""
    may_end, begun = threading.Semaphore(0), []

    def make(behind):
        for k in range(9):
            begun.append(k)
            behind.begin(may_end.acquire)

    with writing_behind() as behind:
        maker = threading.Thread(target=make, args=(behind,))
        maker.start()
        eventually(lambda: len(begun) == 3)  # one at work, one that waits, and one that is to be taken
        time.sleep(0.05)
        assert len(begun) == 3
        may_end.release(9)
        maker.join()
        behind.finish()


def test_jobs_that_wait_are_not_begun_after_an_interrupt():
    """What is at work when the block is left is waited for, what waits for it is not done."""
    at_work, may_end, done = threading.Event(), threading.Event(), []

    def job():
        at_work.set()
        may_end.wait()
        done.append("first")

    def interrupted():
        with writing_behind() as behind:
            behind.begin(job)
            behind.begin(lambda: done.append("second"))
            at_work.wait()
            threading.Timer(0.05, may_end.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["first"]


def test_an_error_of_a_job_is_raised_at_the_next_step():
    """What a job raises comes out of the next call; the jobs before it were done."""
    with writing_behind() as behind:
        behind.begin(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            behind.finish()


def test_a_thread_that_cannot_start_is_a_memory_error(monkeypatch):
    """Where there is no memory for a thread's stack, that is what is said."""

    def refuse(_):
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with writing_behind() as behind, pytest.raises(MemoryError, match="thread"):
        behind.begin(lambda: 1)
