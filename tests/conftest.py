"""Every test runs on the fast BLAS, which must be there before anything imports MLX."""

from stages.models.blas import preload

preload()
