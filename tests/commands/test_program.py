"""What commands ask of the C library."""

import os
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from modeling_kamim.commands.program import keep_freed_memory

def faults_of_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        blocks = [b"x" * (40 << 20) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
faults_of_steps()
print(faults_of_steps())
"""


def faults(word, **environment):
    done = subprocess.run(
        [sys.executable, "-c", STEPS, word],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked")
def test_memory_that_is_freed_is_taken_again_without_a_page_fault():
    kept = faults("keep")
    assert kept < faults("give back") / 10
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072") > 10 * kept
