"""The memory of a run with its backward pass does not grow with the steps, as the system sees it.

`pytest -s tests/system/test_gradient_memory.py -m slow` prints the figures.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOST = 1.2  # times the peak of 10 steps

CODE = """
import re, sys
import odeddim, torch
torch.set_num_threads(1)
def most():
    # Not getrusage, which a process inherits from the one that began it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
weight = torch.linspace(-1, 1, 64).reshape(1, 64, 1, 1).requires_grad_()
def network(x, t):
    hidden = x * weight
    for _ in range(8):
        hidden = torch.tanh(hidden)
    return hidden.mean(dim=1, keepdim=True) + x / 2
model = odeddim.VectorField(network, odeddim.Schedule.linear(), name="mine")
def run(steps, way):
    x_T = odeddim.noise(4, (1, 32, 32)).requires_grad_()
    odeddim.solve(x_T, sys.argv[1], model=model, steps=steps, gradients=way).square().sum().backward()
with torch.no_grad():
    odeddim.solve(odeddim.noise(4, (1, 32, 32)), sys.argv[1], model=model, steps=10)
at_first = most()
for _ in range(3):  # until the gaps of the process's memory are found
    run(10, None)
few = most()
run(200, None)
many = most()
run(20, "direct")
print(few - at_first, many - at_first, most() - at_first)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone says what a process holds at most")
@pytest.mark.parametrize("solver", ["belm", "mf-heun", "unipc-2"])
def test_200_steps_take_as_much_as_10(solver: str) -> None:
    result = subprocess.run([sys.executable, "-c", CODE, solver], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    few, many, direct = map(float, result.stdout.split())
    print(f"{solver}: {few:.0f} MiB for 10 steps, {many:.0f} MiB for 200, {direct:.0f} MiB for 20 by plain autograd")
    assert few > 5  # so something is measured
    assert many <= MOST * few
    assert direct > 3 * few
