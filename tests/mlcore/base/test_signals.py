"""A signal at any moment of a script ends it in order, once."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from mlcore.base.signals import Interrupted, check, deferred, interruptible, received

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def script(code: str, number: signal.Signals) -> tuple[int, str, str]:
    """Run `code`, in which `hit()` sends the signal to the process itself; returns exit code, output and errors."""
    head = f"""
        from mlcore.base.signals import *
        listen()
        import atexit, os, sys
        from mlcore.cli.main import guarded
        def hit():
            os.kill(os.getpid(), {int(number)})
    """
    source = textwrap.dedent(head) + textwrap.dedent(code)
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_work_begins_a_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    code = """
        print("importing")
        try:
            hit()
        except BaseException:  # as a library may have around what it imports
            pass
        print("went on")
    """
    said = "interrupted before the work began: the same command does all of it\n"
    assert script(code, number) == (75, "importing\n", said)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_cleans_up_is_not_interrupted_again(number: signal.Signals) -> None:
    code = """
        def main():
            with deferred():
                try:
                    with interruptible():
                        try:
                            hit()
                            print("went on")
                        finally:
                            hit()
                            print("cleaned up")
                finally:
                    hit()
                    print("noted")
        atexit.register(lambda: (hit(), hit(), print("at exit")))
        guarded(main)
    """
    assert script(code, number) == (75, "cleaned up\nnoted\nat exit\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_no_signal_changes_what_is_done(number: signal.Signals) -> None:
    code = """
        def main():
            with deferred():
                with interruptible():
                    pass
                hit()
                hit()
            hit()
            return 0
        class Last:
            def __del__(self):
                hit()
        last = Last()  # goes while the interpreter shuts down
        atexit.register(hit)
        guarded(main)
    """
    assert script(code, number) == (0, "", "")


def test_a_fork_leaves_signals_to_its_parent() -> None:
    code = """
        def main():
            with deferred(), interruptible():
                child = os.fork()
                if child == 0:
                    hit()
                    os._exit(7)
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        guarded(main)
    """
    assert script(code, signal.SIGTERM) == (7, "", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_that_does_not_listen_has_its_handlers_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with deferred():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        check()
        assert received()
        with pytest.raises(Interrupted), interruptible():
            raise AssertionError("a signal that came before is not forgotten")
    assert signal.getsignal(number) == before
    assert not received()


def test_a_long_loop_looks_for_a_signal_that_python_dropped() -> None:
    with deferred(), interruptible():
        with contextlib.suppress(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            check()


def test_a_block_in_another_thread_does_not_keep_the_main_one_from_listening() -> None:
    inside, over, raised = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        with deferred():
            inside.set()
            over.wait(30)
            try:
                with interruptible():
                    pass
            except Interrupted:
                raised.append("the work of the main thread is what a signal ends")

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(30)
    try:
        with deferred():
            assert signal.getsignal(signal.SIGTERM) != before
            os.kill(os.getpid(), signal.SIGTERM)
            assert received()
            over.set()
            thread.join()
    finally:
        over.set()
        thread.join()
    assert not raised
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_what_python_drops_is_not_printed_and_raised_again(number: signal.Signals) -> None:
    code = """
        import weakref

        class Thing:
            pass

        def main():
            with deferred(), interruptible():
                thing = Thing()
                kept = weakref.ref(thing, lambda _: hit())
                del thing
                print("dropped")
                check()
                print("went on")

        guarded(main)
    """
    assert script(code, number) == (75, "dropped\n", "")
