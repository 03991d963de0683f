"""Conversations that come with the project, so that a first run needs no data of one's own."""

from stages.data.samples.generate import rows

__all__ = ["rows"]
