"""Blocks with one line broken, for more than one file of tests."""

import dataclasses

from diffusion_text.context import Blocks
from diffusion_text.types import Layout


class SegmentForgotten(Blocks):
  """Documents see each other."""

  def training_rows(self, *args):
    rows = super().training_rows(*args)
    layout = dataclasses.replace(rows.layout, segment=None)
    return dataclasses.replace(rows, layout=layout)


class SeesItsOwnCleanBlock(Blocks):
  """The clean copy is numbered one block too low."""

  def training_rows(self, *args):
    rows = super().training_rows(*args)
    layout = rows.layout
    block = layout.block - (1 - layout.noisy)
    layout = Layout(segment=layout.segment, block=block, noisy=layout.noisy)
    return dataclasses.replace(rows, layout=layout)
