"""The types that flow everywhere."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from drivesim.clip import NO_BOX, Camera, Layout, from_uint8, to_uint8


def layout(sides: list[float], classes: list[int] | None = None) -> Layout:
    """One frame of squares at the origin with these sides; track i belongs to box i."""
    n = len(sides)
    boxes = torch.tensor([[0, 0, side, side] for side in sides])[None]
    kinds = torch.tensor([classes or [0] * n])
    zero = torch.zeros(1)
    return Layout(boxes, kinds, torch.arange(n)[None], zero, zero, torch.ones(1).bool(), zero, zero)


def test_where_nobody_says_how_it_was_driven_it_goes_straight_on_at_the_given_speed():
    known = replace(Layout.unknown(3), travel=torch.tensor([0.0, 5, 9]), heading=torch.tensor([0.0, 0.1, 0.2]))
    times = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(known.driven(times, 8.0).travel, known.travel)
    assert torch.equal(known.driven(times, 8.0).heading, known.heading)
    assert Layout.unknown(3).driven(times, 8.0).travel.tolist() == [0, 4, 8]
    assert Layout.unknown(3).driven(times, 8.0).heading.tolist() == [0, 0, 0]


def test_padding_to_fewer_slots_keeps_the_largest_boxes():
    small = layout([0.1, 0.5, 0.3, 0.4]).pad(2)
    assert small.tracks.tolist() == [[1, 3]]
    assert_close(small.boxes[0, :, 2], torch.tensor([0.5, 0.4]))


def test_padding_drops_empty_slots_before_boxes():
    kept = layout([0.9, 0.1, 0.2], [NO_BOX, 0, 3]).pad(2)
    assert kept.tracks.tolist() == [[2, 1]]
    assert kept.classes.tolist() == [[3, 0]]


def test_padding_to_more_slots_adds_empty_ones():
    grown = layout([0.1]).pad(3)
    assert grown.classes.tolist() == [[0, NO_BOX, NO_BOX]]
    assert grown.tracks.tolist() == [[0, NO_BOX, NO_BOX]]
    assert grown.boxes.shape == (1, 3, 4)
    assert grown.pad(1).boxes.equal(layout([0.1]).boxes)


def test_indexing_stacking_and_joining_move_all_tensors_together():
    frames = Layout.cat([layout([0.1]), layout([0.2]), layout([0.3])])
    assert frames.num_frames == 3
    assert_close(frames[torch.tensor([2, 0])].boxes[:, 0, 2], torch.tensor([0.3, 0.1]))
    batch = Layout.stack([frames, frames])
    assert batch.classes.shape == (2, 3, 1)
    assert batch.num_frames == 3
    assert Layout.cat([batch, batch], 1).night.shape == (2, 6)


def test_every_8_bit_value_survives_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    floats = from_uint8(values)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert to_uint8(floats).equal(values)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_one_metre_at_ten_metres_is_a_tenth_of_the_focal_length():
    camera = Camera(torch.tensor([[500.0, 0, 512], [0, 500, 256], [0, 0, 1]]).numpy(), 512, 1024)
    points = torch.tensor([[0.0, 0, 10], [1, 0, 10], [0, -2, 10]]).numpy()
    assert_close(torch.from_numpy(camera.project(points)), torch.tensor([[512.0, 256], [562, 256], [512, 156]]))
    with pytest.raises(ValueError, match="1 of 3 points"):
        camera.project(points - [[0, 0, 0], [0, 0, 10], [0, 0, 0]])
