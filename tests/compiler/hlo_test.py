"""Programs read from their text: turns of loops, collectives, bytes and FLOPs, counted by hand."""

import re

import numpy as np
import pytest

from diffusion_text.compiler.chips import CHIPS, GIB, chip_of, collective_seconds
from diffusion_text.compiler.hlo import Program, replica_group, size
from diffusion_text.compiler.hlo_text import elements

# Two nested loops: 12 turns of a layer (an all-reduce of 8 KiB, a matmul fusion), and in each turn
# an unrolled loop from 0 to 4 by 2 with a permute. Then a loop whose turns only the run knows, an
# all-gather spread over two fusions, and a fusion that is a reduce-scatter. Backslashes join lines.
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%inner_cond (p.1: (s32[], bf16[4,8])) -> pred[] {
  %bound = s32[] constant(4)
  %p.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[] compare(%i.1, %bound), direction=LT
}

%inner_body (p.2: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p.2 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %two = s32[] constant(2)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %x.2 = bf16[4,8]{1,0} get-tuple-element(%p.2), index=1
  %next.2 = s32[] add(%i.2, %two)
  %permute = (bf16[4,8]{1,0}, bf16[4,8]{1,0}) collective-permute-start(%x.2), channel_id=1, \
source_target_pairs={{0,1},{1,2}}
  %done = bf16[4,8]{1,0} collective-permute-done(%permute)
  ROOT %t.2 = (s32[], bf16[4,8]{1,0}) tuple(%next.2, %done)
}

%matmul (x.3: bf16[16,32], w.3: bf16[12,32,8], i.3: s32[]) -> bf16[16,8] {
  %x.3 = bf16[16,32]{1,0} parameter(0)
  %w.3 = bf16[12,32,8]{2,1,0} parameter(1)
  %i.3 = s32[] parameter(2)
  %z.3 = s32[] constant(0)
  %one.3 = bf16[1,32,8]{2,1,0} dynamic-slice(%w.3, %i.3, %z.3, %z.3), dynamic_slice_sizes={1,32,8}
  %flat.3 = bf16[32,8]{1,0} bitcast(%one.3)
  ROOT %conv.3 = bf16[16,8]{1,0} convolution(%x.3, %flat.3), dim_labels=bf_io->bf
}

%layer_cond (p.4: (s32[], bf16[16,32], bf16[12,32,8], f32[2048])) -> pred[] {
  %n = s32[] constant(12)
  %p.4 = (s32[], bf16[16,32]{1,0}, bf16[12,32,8]{2,1,0}, f32[2048]{0}) parameter(0)
  %i.4 = s32[] get-tuple-element(%p.4), index=0
  ROOT %lt.4 = pred[] compare(%i.4, %n), direction=LT
}

%layer_body (p.5: (s32[], bf16[16,32], bf16[12,32,8], f32[2048])) -> \
(s32[], bf16[16,32], bf16[12,32,8], f32[2048]) {
  %p.5 = (s32[], bf16[16,32]{1,0}, bf16[12,32,8]{2,1,0}, f32[2048]{0}) parameter(0)
  %one = s32[] constant(1)
  %i.5 = s32[] get-tuple-element(%p.5), index=0
  %x.5 = bf16[16,32]{1,0} get-tuple-element(%p.5), index=1
  %w.5 = bf16[12,32,8]{2,1,0} get-tuple-element(%p.5), index=2
  %g.5 = f32[2048]{0} get-tuple-element(%p.5), index=3
  %next.5 = s32[] add(%i.5, %one)
  %y.5 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} fusion(%x.5, %w.5, %i.5), kind=kOutput, calls=%matmul
  %sum.5 = f32[2048]{0} all-reduce(%g.5), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), \
to_apply=%add
  %zero.5 = s32[] constant(0)
  %small.5 = bf16[4,8]{1,0} constant({...})
  %pack.5 = (s32[], bf16[4,8]{1,0}) tuple(%zero.5, %small.5)
  %loop.5 = (s32[], bf16[4,8]{1,0}) while(%pack.5), condition=%inner_cond, body=%inner_body
  ROOT %t.5 = (s32[], bf16[16,32]{1,0}, bf16[12,32,8]{2,1,0}, f32[2048]{0}) \
tuple(%next.5, %x.5, %w.5, %sum.5)
}

%vocab_cond (p.6: (s32[], s32[], f32[64])) -> pred[] {
  %p.6 = (s32[], s32[], f32[64]{0}) parameter(0)
  %i.6 = s32[] get-tuple-element(%p.6), index=0
  %n.6 = s32[] get-tuple-element(%p.6), index=1
  ROOT %lt.6 = pred[] compare(%i.6, %n.6), direction=LT
}

%vocab_body (p.7: (s32[], s32[], f32[64])) -> (s32[], s32[], f32[64]) {
  %p.7 = (s32[], s32[], f32[64]{0}) parameter(0)
  %i.7 = s32[] get-tuple-element(%p.7), index=0
  %n.7 = s32[] get-tuple-element(%p.7), index=1
  %v.7 = f32[64]{0} get-tuple-element(%p.7), index=2
  %sum.7 = f32[64]{0} all-reduce(%v.7), channel_id=3, \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %t.7 = (s32[], s32[], f32[64]{0}) tuple(%i.7, %n.7, %sum.7)
}

%async_collective_start (x.8: f32[10]) -> (f32[40], f32[10]) {
  %x.8 = f32[10]{0} parameter(0)
  %gather.8 = f32[40]{0} all-gather(%x.8), channel_id=4, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, frontend_attributes={chain_id="1"}
  ROOT %t.8 = (f32[40]{0}, f32[10]{0}) tuple(%gather.8, %x.8)
}

%async_collective_done (x.9: f32[10]) -> f32[40] {
  %x.9 = f32[10]{0} parameter(0)
  ROOT %gather.9 = f32[40]{0} all-gather(%x.9), channel_id=4, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, frontend_attributes={chain_id="1"}
}

%all-reduce-scatter (x.10: f32[800]) -> f32[100] {
  %x.10 = f32[800]{0} parameter(0)
  %sum.10 = f32[800]{0} all-reduce(%x.10), channel_id=5, replica_groups={}, to_apply=%add
  %zero.10 = s32[] constant(0)
  ROOT %part.10 = f32[100]{0} dynamic-slice(%sum.10, %zero.10), dynamic_slice_sizes={100}
}

ENTRY %main (x: bf16[16,32], w: bf16[12,32,8], g: f32[2048], v: f32[64], s: f32[10], \
r: f32[800]) -> f32[100] {
  %x = bf16[16,32]{1,0} parameter(0)
  %w = bf16[12,32,8]{2,1,0} parameter(1)
  %g = f32[2048]{0} parameter(2)
  %v = f32[64]{0} parameter(3)
  %s = f32[10]{0} parameter(4)
  %r = f32[800]{0} parameter(5)
  %zero = s32[] constant(0)
  %pack = (s32[], bf16[16,32]{1,0}, bf16[12,32,8]{2,1,0}, f32[2048]{0}) tuple(%zero, %x, %w, %g)
  %layers = (s32[], bf16[16,32]{1,0}, bf16[12,32,8]{2,1,0}, f32[2048]{0}) while(%pack), \
condition=%layer_cond, body=%layer_body
  %pack.1 = (s32[], s32[], f32[64]{0}) tuple(%zero, %zero, %v)
  %vocab = (s32[], s32[], f32[64]{0}) while(%pack.1), condition=%vocab_cond, body=%vocab_body
  %kernel = f32[100]{0} custom-call(%r), custom_call_target="tpu_custom_call"
  %note = f32[100]{0} custom-call(%r), custom_call_target="ConcatBitcast"
  %start = (f32[40]{0}, f32[10]{0}) fusion(%s), kind=kCustom, calls=%async_collective_start
  %end = f32[40]{0} fusion(%s), kind=kCustom, calls=%async_collective_done
  ROOT %out = f32[100]{0} fusion(%r), kind=kCustom, calls=%all-reduce-scatter
}
"""


def as_jax_writes_since_0_12(text):
  """The text with each element of a tuple where it is used, as `%p.1#0`."""
  found = r"  %(\S+) = \S+ get-tuple-element\(%(\S+)\), index=(\d+)\n"
  for name, of, index in re.findall(found, text):
    text = re.sub(rf"%{re.escape(name)}(?=[,)])", f"%{of}#{index}", text)
  return re.sub(found, "", text)


def test_both_spellings_of_elements_are_the_same_program():
  text = as_jax_writes_since_0_12(TEXT)
  assert "get-tuple-element" not in text and "add(%p.2#0, %two)" in text
  old, new = Program(TEXT, unknown_trips=5), Program(text, unknown_trips=5)
  assert new.collectives() == old.collectives()
  assert (new.matmul_flops(), new.memory_bytes()) == (old.matmul_flops(), old.memory_bytes())
  nested = "(f32[2]{0:T(8,128)}, (s32[], /*index=1*/bf16[4,8]{1,0}), u32[])"
  assert elements(nested) == ["f32[2]{0:T(8,128)}", "(s32[], bf16[4,8]{1,0})", "u32[]"]


def test_a_loop_of_another_form_has_unknown_turns():
  """The counter is a sum, not an element of the carry."""
  summed = TEXT.replace("compare(%i.1, %bound)", "compare(%two.1, %bound)")
  summed = summed.replace("  ROOT %lt.1", "  %two.1 = s32[] add(%i.1, %i.1)\n  ROOT %lt.1")
  times = [c.times for c in Program(summed, unknown_trips=5).collectives() if c.name == "permute"]
  assert times == [12 * 5]


def test_collectives_are_counted_as_often_as_they_run():
  found = {c.name: c for c in Program(TEXT, unknown_trips=5).collectives()}
  got = {name: (c.kind, c.payload, c.times, c.group, c.asynchronous) for name, c in found.items()}
  assert got == {
    "permute": ("collective-permute", 64, 12 * 2, (0, 1), True),
    "sum.5": ("all-reduce", 8192, 12, (0, 2, 4, 6), False),
    "sum.7": ("all-reduce", 256, 5, (0, 1), False),
    "gather.9": ("all-gather", 160, 1, (0, 1, 2, 3), True),  # once, although in two fusions
    "sum.10": ("reduce-scatter", 3200, 1, (), False),
  }


def test_a_known_trip_count_is_believed():
  noted = TEXT.replace(
    "body=%layer_body", 'body=%layer_body, backend_config={"known_trip_count":{"n":"3"}}'
  )
  assert [c.times for c in Program(noted).collectives() if c.name == "sum.5"] == [3]


def test_flops_and_bytes():
  program = Program(TEXT, unknown_trips=5)
  matmul = 2 * 16 * 32 * 8
  assert program.matmul_flops() == 12 * matmul
  # In each turn the fusion reads x, one layer of w and the counter. Its result is in fast memory.
  # The sum of a counter reads and writes three scalars. A kernel counts like a fusion.
  fused = 16 * 32 * 2 + 32 * 8 * 2 + 4
  once = sum(times * moved for times, flops, moved in program.costs() if flops)
  assert once == 12 * fused
  scalars = 12 * 12 + 24 * 12
  ends = (10 + 40 + 10) * 4 + (10 + 40) * 4 + 2 * (800 + 100) * 4
  assert program.memory_bytes() == 12 * fused + scalars + ends


def test_a_padded_window_counts_what_is_not_padding():
  line = (
    "  %c = bf16[8,6,64]{2,1,0} convolution(%x.3, %k), "
    "window={size=6 pad=5_5 rhs_reversal=1}, dim_labels=b0f_0oi->b0f"
  )
  body = TEXT.replace("ROOT %conv.3", "%conv.3").replace(
    "dim_labels=bf_io->bf\n",
    "dim_labels=bf_io->bf\n  %k = bf16[6,64,96]{2,1,0} constant({...})\n  %x.4 = "
    "bf16[8,1,96]{2,1,0} constant({...})\n"
    + line.replace("%x.3", "%x.4")
    + "\n  ROOT %r.3 = bf16[16,8]{1,0} copy(%conv.3)\n",
  )
  assert Program(body).matmul_flops() == 12 * (2 * 16 * 32 * 8 + 2 * 8 * 6 * 64 * 96)


@pytest.mark.parametrize(
  "attributes,group",
  [
    ("replica_groups={{0,2},{1,3}}", (0, 2)),
    ("replica_groups=[2,8]<=[8,2]T(1,0)", tuple(range(0, 16, 2))),
    ("replica_groups=[8,2]<=[16]", (0, 1)),
    ("replica_groups=mesh['x'=8,'y'=2] {'x'}", tuple(range(0, 16, 2))),
    ("replica_groups=mesh['x'=8,'y'=2] {'x','y'}", tuple(range(16))),
    ("replica_groups=mesh['x'=8,'y'=2] {'x':(2)4}", (0, 2, 4, 6)),
    ("source_target_pairs={{3,1},{1,3}}", (3, 1)),
    ("replica_groups={}", ()),
  ],
)
def test_groups_in_every_spelling(attributes, group):
  assert replica_group(f", channel_id=1, {attributes}, use_global_device_ids=true") == group


def test_sizes():
  assert (
    size("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[], s4[8]{0}, pred[5]{0}, f8e4m3fn[7]{0})")
    == 12 + 4 + 4 + 5 + 7
  )
  assert size("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[])", in_memory=True) == 4
  with pytest.raises(ValueError, match="no ENTRY"):
    Program("HloModule nothing")


def test_collectives_on_a_torus():
  """By hand: bytes received per chip over the links of the axes that a group spans.

  An axis has two links if it is a ring.
  """
  chip, pod = CHIPS["v5e"], (16, 16)
  row, square = [(x, 0) for x in range(16)], [(x, y) for x in range(16) for y in range(16)]
  part = [(x, 0) for x in range(8)]
  assert collective_seconds(chip, "all-gather", 16e9, row, pod) == pytest.approx(15e9 / 100e9)
  assert collective_seconds(chip, "all-reduce", 16e9, row, pod) == pytest.approx(2 * 15e9 / 100e9)
  assert collective_seconds(chip, "reduce-scatter", 256e9, square, pod) == pytest.approx(
    255e9 / 200e9
  )
  # A line.
  assert collective_seconds(chip, "all-gather", 8e9, part, pod) == pytest.approx(7e9 / 50e9)
  assert collective_seconds(chip, "collective-permute", 1e9, row[:2], pod) == pytest.approx(
    1e9 / 50e9
  )
  assert collective_seconds(chip, "all-to-all", 1e9, row, pod) == pytest.approx(4e9 / 100e9)
  assert collective_seconds(chip, "all-gather", 1e9, row[:1], pod) == 0
  cube = [tuple(place) for place in np.ndindex(8, 8, 8)]
  assert collective_seconds(CHIPS["v5p"], "all-gather", 512e9, cube, (8, 8, 8)) == pytest.approx(
    511e9 / 600e9
  )
  # Two devices at every place share its links, and what both need is received once.
  halves = [place for place in cube for _ in range(2)]
  two = CHIPS["tpu7x"]
  assert collective_seconds(two, "all-gather", 512e9, halves, (8, 8, 8)) == pytest.approx(
    511e9 / 600e9
  )
  assert collective_seconds(two, "collective-permute", 1e9, halves[:4], (8, 8, 8)) == (
    pytest.approx(2e9 / 100e9)
  )
  ways = [collective_seconds(two, "all-to-all", 1e9, each, (8, 8, 8)) for each in (halves, cube)]
  assert ways[0] == pytest.approx(2 * ways[1])
  assert collective_seconds(two, "all-reduce", 1e9, halves[:2], (8, 8, 8)) == 0


def test_topologies_are_named():
  assert chip_of("v6e:16x16").memory == 32 * GIB
  assert 2 * chip_of("tpu7x:4x4x4").flops == 2307e12
  for bad in ("v7:2x2", "v5e", "16x16"):
    with pytest.raises(ValueError, match="v5e:16x16"):
      chip_of(bad)


OFFLOADED = """HloModule step

%on_sparse_core (x: bf16[8,128]) -> bf16[32,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  ROOT %gathered = bf16[32,128]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}}, \
dimensions={0}
}

%wrapped (y: bf16[8,128]) -> bf16[32,128] {
  %y = bf16[8,128]{1,0} parameter(0)
  ROOT %call = bf16[32,128]{1,0} custom-call(%y), custom_call_target="offloaded", \
called_computations={%on_sparse_core}
}

ENTRY %main (a: bf16[8,128]) -> bf16[32,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %begun = ((bf16[8,128]{1,0}), bf16[32,128]{1,0}, u32[]) async-start(%a), \
async_execution_thread="sparsecore", calls=%wrapped
  ROOT %done = bf16[32,128]{1,0} async-done(%begun)
}
"""


def test_collectives_on_sparse_cores_are_found():
  """TPU7x hands collectives to its sparse cores: a custom call, beside the program."""
  (found,) = Program(OFFLOADED).collectives()
  assert (found.kind, found.payload, found.asynchronous) == ("all-gather", 32 * 128 * 2, True)
