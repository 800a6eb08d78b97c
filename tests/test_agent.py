"""torchrun's last words, and the ranks that it would wait for."""

import os
import signal
import sys
import time

import psutil

from runs import output, start

IMPATIENT = "import sys, launch.agent as agent; agent.STOPPED_S = 2; sys.exit(agent.run())"


def agent(script: str, tmp_path, code: str = "import sys, launch.agent; sys.exit(launch.agent.run())"):
    path = tmp_path / "script.py"
    path.write_text(script)
    return start([sys.executable, "-c", code, "--standalone", "--nproc_per_node=1", "--", str(path), "--num", "3"])


def test_a_rank_that_fails_is_one_line(tmp_path):
    process = agent("import sys; sys.exit(7)", tmp_path)
    text = output(process)
    assert process.returncode == 1 and "rank 0 ended first here, status 7" in text and "Traceback" not in text


def test_options_of_the_script_are_none_of_torchruns(tmp_path):
    process = agent("import sys; print(sys.argv[1:])", tmp_path)
    assert "['--num', '3']" in output(process) and process.returncode == 0


def test_a_rank_that_stays_stopped_is_killed(tmp_path):
    process = agent("import time; time.sleep(600)", tmp_path, IMPATIENT)
    end = time.monotonic() + 30
    while not (children := psutil.Process(process.pid).children()):
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(children[0].pid, signal.SIGSTOP)
    text = output(process, 30)
    assert process.returncode == 1 and f"the rank with pid {children[0].pid} has been stopped for 2 s" in text
    assert "rank 0 ended first here, by SIGKILL" in text
