"""Every test runs on the fast BLAS, which must be there before anything imports MLX."""

import os

from pipeline.environment import worker_variables
from stages.models.blas import preload

os.environ.update(worker_variables("tiny"))
preload()
