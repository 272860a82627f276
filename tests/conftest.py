"""One thread and passive waiting: 60 small tests take 1.6 s so, and 30 to 48 s with two spinning threads beside a job."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

torch.set_num_threads(1)
