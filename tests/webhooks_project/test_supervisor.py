"""Several programs as one tree. The programs are small scripts, their processes are real."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.webhooks_project.waiting import alive, eventually
from webhooks_project.supervisor import Program, Supervisor

ROOT = Path(__file__).resolve().parents[2]
WAIT = "import signal; print('here', flush=True); signal.pause()"
DEAF = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('deaf', flush=True)\nwhile True: signal.pause()"
)
PARENT = (
    "import subprocess, sys, signal;"
    f"child = subprocess.Popen([sys.executable, '-c', {DEAF!r}]);"
    "print('child', child.pid, flush=True); signal.pause()"
)


def script(name: str, code: str, **options: object) -> Program:
    return Program(name, [sys.executable, "-c", code], **options)  # type: ignore[arg-type]


@pytest.fixture
def supervise():
    """Start a tree in a thread; it is stopped at the end."""
    trees = []

    def start(*programs: Program, **options: object) -> tuple[Supervisor, io.StringIO]:
        output = io.StringIO()
        tree = Supervisor(programs, output, **options)
        trees.append(tree)
        tree.start()
        return tree, output

    yield start
    for tree in trees:
        tree.stop()


def test_every_line_comes_out_behind_the_name_of_its_program(supervise):
    talk = "import sys; print('one\\ntwo'); print('err', file=sys.stderr); print('tail', end='');"
    _, output = supervise(script("web", talk + WAIT), script("worker", WAIT))
    eventually(lambda: "tailhere" in output.getvalue() and "worker | here" in output.getvalue())
    lines = output.getvalue().splitlines()
    assert [line for line in lines if line.startswith("web    | ")][:2] == [
        "web    | one",
        "web    | two",
    ]
    assert "web    | err" in lines
    assert all("\x1b" not in line for line in lines)


def test_on_a_terminal_each_program_has_a_colour():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    output = Terminal()
    tree = Supervisor([script("a", WAIT), script("b", WAIT)], output)
    tree.start()
    eventually(lambda: output.getvalue().count("here") == 2)
    tree.stop()
    assert "\x1b[36ma | \x1b[0mhere" in output.getvalue()
    assert "\x1b[33mb | \x1b[0mhere" in output.getvalue()


def test_the_last_words_of_a_program_are_not_lost(supervise):
    code = "import os; os.write(1, b'%' * 200000 + b'\\nthe end')"
    _, output = supervise(script("a", code))
    eventually(lambda: "a | the end\n" in output.getvalue())
    assert output.getvalue().partition("the end")[0].count("%") == 200000


def test_bytes_that_are_no_text_are_shown_harmless(supervise):
    _, output = supervise(script("a", "import os; os.write(1, b'\\xff\\xfe\\n');" + WAIT))
    eventually(lambda: "here" in output.getvalue())
    assert "a | \ufffd\ufffd\n" in output.getvalue()


def test_ready_means_that_every_file_is_there_and_every_address_answers(supervise, tmp_path):
    asked = threading.Event()
    healthy = threading.Event()

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            self.send_response(200 if healthy.is_set() else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said = threading.Event()
    file = tmp_path / "ready"
    file.touch()  # of an earlier life: does not count
    tree, output = supervise(
        script("file", "import sys, pathlib; sys.stdin.read();" + WAIT, ready_file=file),
        script("web", WAIT, ready_url=f"http://127.0.0.1:{server.server_port}/healthz"),
        on_ready=said.set,
    )
    assert asked.wait(20)
    eventually(lambda: output.getvalue().count("here") == 2)
    assert not file.exists()
    with pytest.raises(RuntimeError, match=r"Not ready within 0 s: file, web"):
        tree.wait_until_ready(0)
    file.touch()
    healthy.set()
    tree.wait_until_ready(20)
    assert said.wait(5)
    server.shutdown()
    server.server_close()


def test_a_program_that_dies_is_started_again(supervise):
    tree, output = supervise(script("a", WAIT))
    eventually(lambda: "here" in output.getvalue())
    first = tree.pid("a")
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: tree.pid("a") not in (None, first) and tree.pid("a"))
    eventually(lambda: output.getvalue().count("here") == 2)
    assert "a | ended with signal SIGKILL; next start in 1 s" in output.getvalue()
    assert alive(second)


def test_a_program_that_cannot_live_ends_the_tree_with_its_reason(monkeypatch, supervise, tmp_path):
    monkeypatch.setattr("webhooks_project.supervisor.RESTART_SECONDS", 0)
    tree, output = supervise(
        script("good", WAIT), script("bad", "raise SystemExit(7)", ready_file=tmp_path / "never")
    )
    with pytest.raises(RuntimeError, match="bad ended with status 7, for the 5th time within 60 s"):
        tree.wait_until_ready(20)
    assert tree.pid("good") is None
    assert tree.stop() == 1
    assert output.getvalue().count("next start") == 4


def test_a_program_that_is_not_there_is_a_death_too(monkeypatch, supervise):
    monkeypatch.setattr("webhooks_project.supervisor.RESTART_SECONDS", 0)
    tree, output = supervise(Program("gone", ["/no/such/program"]))
    tree._thread.join(20)
    assert "gone ended with status 125" in tree.reason
    assert "gone | /no/such/program: [Errno 2] No such file or directory" in output.getvalue()


def test_a_program_that_ignores_the_end_is_killed_after_its_time(supervise):
    tree, output = supervise(script("deaf", DEAF), stop_seconds=0.3)
    eventually(lambda: "deaf | deaf" in output.getvalue())
    pid = tree.pid("deaf")
    assert tree.stop() == 0
    assert not alive(pid)
    assert "deaf | does not end; killed" in output.getvalue()


def test_what_a_program_left_behind_goes_with_it(supervise):
    tree, output = supervise(script("parent", PARENT))
    eventually(lambda: "parent | deaf" in output.getvalue())
    child = int(output.getvalue().partition("child ")[2].split()[0])
    tree.stop()
    eventually(lambda: not alive(child))


TREE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from webhooks_project.supervisor import Program, Supervisor
programs = [Program(str(n), [sys.executable, "-c", code]) for n, code in enumerate(sys.argv[2:])]
tree = Supervisor(programs, stop_seconds=float(sys.argv[1]))
tree._on_ready = lambda: print("pids", *(tree.pid(p.name) for p in programs), flush=True)
sys.exit(tree.run())
"""


@contextlib.contextmanager
def own_process(*codes: str, stop_seconds: float = 12):
    """A supervisor in a process of its own; gives it and the process ids of its programs."""
    process = subprocess.Popen(
        [sys.executable, "-c", TREE, str(stop_seconds), *codes],
        stdout=subprocess.PIPE,
        text=True,
    )
    pids, heard = [], 0
    while not pids or heard < len(codes):
        line = process.stdout.readline()
        assert line, "the supervisor ended"
        if line.startswith("pids"):
            pids = [int(pid) for pid in line.split()[1:]]
        heard += " | " in line
    try:
        yield process, pids
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_tree_and_its_status_is_0(sign):
    with own_process(WAIT, WAIT) as (process, pids):
        process.send_signal(sign)
        assert process.wait(20) == 0
        assert not any(alive(pid) for pid in pids)


def test_a_second_signal_ends_it_at_once():
    stubborn = DEAF.replace("signal.SIG_IGN", "lambda *_: print('no', flush=True)")
    with own_process(stubborn, stop_seconds=600) as (process, pids):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "0 | no\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert not alive(pids[0])


def test_a_killed_supervisor_leaves_no_child():
    with own_process(WAIT, DEAF) as (process, pids):
        process.kill()
        for pid in pids:
            eventually(lambda pid=pid: not alive(pid))


def test_a_reader_that_goes_away_ends_the_tree():
    with own_process("import time\nwhile True: print('x', flush=True); time.sleep(0.01)") as (
        process,
        pids,
    ):
        process.stdout.close()
        assert process.wait(20) == 0
        assert not any(alive(pid) for pid in pids)
        process.stdout = None
