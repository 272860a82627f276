"""One thread and passive waiting: with two spinning threads beside another job, small tests take 20 times as long."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

torch.set_num_threads(1)
