"""Hypothesis strategies that several tests share."""

from functools import partial

from hypothesis import strategies as st

floats = partial(st.floats, allow_subnormal=False)
"""Numbers without denormal ones: a training, perhaps of an earlier test, takes them for zero in its whole process."""
