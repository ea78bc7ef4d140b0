"""The clock, with a time that the test moves."""

import pytest

from diffusion_text.train.clock import Clock


class Time:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_training_time_pauses_and_device_hours_do_not():
  time = Time()
  clock = Clock(devices=4, now=time)
  assert clock.seconds == 0
  clock.start()
  time.now += 10
  with clock.paused():
    time.now += 5
    assert clock.seconds == 10  # within the pause too
    with clock.paused():
      time.now += 1
  time.now += 2
  assert clock.seconds == 12
  assert clock.device_hours == pytest.approx(4 * 18 / 3600)


def test_rates_forget_compilation_and_the_distant_past():
  time = Time()
  clock = Clock(window=2, now=time)
  clock.start()
  time.now += 60  # compilation
  clock.tick(1, 1000)
  assert clock.rates() == {} and clock.seconds_left(10) is None
  time.now += 2
  clock.tick(2, 1000)
  assert clock.rates() == {"steps_per_second": 0.5, "tokens_per_second": 500}
  assert clock.seconds_left(10) == 16
  assert clock.seconds_left(10, max_seconds=70) == 8
  for step in (3, 4):
    time.now += 1
    with clock.paused():
      time.now += 100
    clock.tick(step, 1000)
  assert clock.rates() == {"steps_per_second": 1, "tokens_per_second": 1000}


def test_survives_restarts_with_another_number_of_devices():
  time = Time()
  first = Clock(devices=2, now=time)
  first.start()
  time.now += 10
  second = Clock(devices=8, now=time)
  second.from_dict(first.to_dict())
  time.now += 1000  # between two processes nothing is counted
  second.start()
  time.now += 5
  assert second.seconds == 15
  assert second.device_hours == pytest.approx((2 * 10 + 8 * 5) / 3600)
  with pytest.raises(RuntimeError, match="before start"):
    second.from_dict({})


def test_bad_arguments():
  with pytest.raises(ValueError, match="devices=0"):
    Clock(devices=0)
