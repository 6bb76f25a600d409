"""Run by test_kill.py: embeds in child processes that are killed again and again, until one comes to its end."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import scfm
import scfm.inference
import scfm.reading
import scfm.sinks  # all imported before the first fork

data, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
scfm.reading.BLOCK_ROWS = 8
encoder = scfm.load("mini", device="cpu").with_options(context=16)
chance = random.Random(seed)
journals = [out.with_name(f"{out.name}.journal"), out.with_name(f"{out.name}.part.npy.journal")]


def lines() -> int:
    return max((path.read_bytes().count(b"\n") for path in journals if path.exists()), default=0)


MOST_KILLS = 40
kills = 0
while True:
    begun, grace = lines(), chance.random() * 0.02
    patience = chance.randrange(4) if kills < MOST_KILLS else sys.maxsize
    child = os.fork()
    if child == 0:
        encoder.embed(data, out=out)
        os._exit(0)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if lines() - begun >= patience:
            time.sleep(grace)
            os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
    elif os.WEXITSTATUS(status) == 0:
        break
    else:
        sys.exit(f"the child failed with {os.WEXITSTATUS(status)}")
print(kills)
