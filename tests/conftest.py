import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # tests run side by side: one thread each, here and in the processes they start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
