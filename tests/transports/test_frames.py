"""Frames as the server writes them, and the mask of those it reads."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anycable_tx.transports.frames import control_frame, deflated_frame, text_frame, unmask


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_text_frame_has_the_shortest_length_that_fits(size, header):
    assert text_frame(b"x" * size) == header + b"x" * size


@given(st.binary(max_size=300))
def test_each_deflated_frame_can_be_inflated_alone(payload):
    frame = deflated_frame(payload)
    assert frame[0] == 0xC1
    data = frame[2:] if frame[1] < 126 else frame[4:]
    assert zlib.decompressobj(-15).decompress(data + b"\x00\x00\xff\xff") == payload


def test_a_deflated_frame_is_smaller_than_the_text():
    assert len(deflated_frame(b'{"a":1}' * 100)) < 100


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (control_frame(9), b"\x89\x00"),
        (control_frame(10, b"abc"), b"\x8a\x03abc"),
        (control_frame(8, b"\x03\xe8bye"), b"\x88\x05\x03\xe8bye"),
    ],
)
def test_control_frames(frame, wire):
    assert frame == wire


@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4))
def test_unmasking_xors_every_byte_with_the_repeated_mask(data, mask):
    assert unmask(data, mask) == bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
