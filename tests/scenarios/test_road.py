import math

import numpy as np
import pytest

from drivesim.scenarios.kinds import Keyframes, constant
from drivesim.scenarios.road import Road, drive
from drivesim.scenarios.schema import Ego

TIMES = np.arange(60) / 10


def test_a_speed_that_rises_evenly_drives_half_a_t_squared():
    way = drive(Ego(speed_mps=Keyframes((1.0, 5.0), (2.0, 10.0))), TIMES)
    rising = np.clip(TIMES - 1, 0, 4)
    expected = 2 * np.minimum(TIMES, 1) + 2 * rising + rising**2 + 10 * np.clip(TIMES - 5, 0, None)
    np.testing.assert_allclose(way.travel, expected, atol=1e-3)
    np.testing.assert_allclose(way.speed, 2 + 2 * rising, atol=1e-9)
    np.testing.assert_allclose(way.poses[:, 2, 3], expected, atol=1e-3)  # straight ahead
    np.testing.assert_allclose(way.poses[:, 0, 3], 0, atol=1e-9)


def test_a_steady_turn_is_a_circle_to_the_right():
    way = drive(Ego(speed_mps=constant(6.0), turn_deg_s=constant(10.0)), TIMES)
    rate = math.radians(10)
    radius = 6 / rate
    np.testing.assert_allclose(way.heading, rate * TIMES, atol=1e-3)
    np.testing.assert_allclose(way.turn, rate, atol=1e-4)
    np.testing.assert_allclose(way.poses[:, 0, 3], radius * (1 - np.cos(rate * TIMES)), atol=5e-3)
    np.testing.assert_allclose(way.poses[:, 2, 3], radius * np.sin(rate * TIMES), atol=5e-3)
    np.testing.assert_allclose(np.linalg.det(way.poses), 1, atol=1e-9)


def test_a_car_that_stands_does_not_turn():
    way = drive(Ego(speed_mps=constant(0.0), turn_deg_s=constant(30.0)), TIMES)
    np.testing.assert_allclose(way.poses, np.tile(np.eye(4), (60, 1, 1)), atol=1e-12)


def test_a_path_is_driven_through_its_points_and_straight_on_after_the_last():
    way = drive(Ego(speed_mps=constant(10.0), path=((20.0, 0.0), (40.0, 4.0))), TIMES)
    x, z = way.poses[:, 0, 3], way.poses[:, 2, 3]
    np.testing.assert_allclose(np.hypot(np.diff(x), np.diff(z)), 1, atol=5e-3)  # 10 m/s, ten frames a second
    assert abs(np.interp(20, z, x)) < 0.02
    assert np.interp(40, z, x) == pytest.approx(-4, abs=0.02)  # left is -x
    late = way.heading[TIMES > 4.5]
    np.testing.assert_allclose(late, late[0], atol=1e-9)


def test_a_lane_change_ends_in_the_next_lane_looking_ahead():
    way = drive(Ego(speed_mps=constant(10.0), left_m=Keyframes((1.0, 4.0), (0.0, 3.5))), TIMES)
    np.testing.assert_allclose(way.poses[TIMES <= 1, 0, 3], 0, atol=1e-9)
    np.testing.assert_allclose(way.poses[TIMES >= 4, 0, 3], -3.5, atol=1e-6)
    assert way.heading.min() < -0.1  # to the left on the way
    np.testing.assert_allclose(way.heading[-5:], 0, atol=1e-6)


def test_the_world_is_that_of_the_first_camera_even_when_it_starts_beside_the_road():
    way = drive(Ego(speed_mps=constant(10.0), left_m=constant(2.0)), TIMES)
    np.testing.assert_allclose(way.poses[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(way.road.at(np.array([0.0, 30.0]))[0], [[2, 0, 0], [2, 0, 30]], atol=1e-9)


def test_beyond_its_ends_a_road_goes_straight_on():
    angle = np.linspace(0, math.pi / 2, 200)
    points = np.stack([10 - 10 * np.cos(angle), 0 * angle, 10 * np.sin(angle)], -1)  # a quarter circle to the right
    points, heading = Road(10 * angle, points, angle).at(np.array([-5.0, 5 * math.pi + 7]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(points, [[-1, 0, -5], [17, 0, 11]], atol=0.05)  # left of east is north
    np.testing.assert_allclose(heading, [0, math.pi / 2], atol=0.01)


def test_keyframes_are_eased_without_overshoot_and_rest_where_they_hold():
    eased = Keyframes((1.0, 3.0), (3.5, 0.0)).eased(TIMES)
    assert (np.diff(eased) <= 1e-12).all()
    np.testing.assert_allclose(eased[[0, 10, 20, 30, 59]], [3.5, 3.5, 1.75, 0, 0], atol=1e-9)
    np.testing.assert_allclose(np.gradient(eased, TIMES)[[10, 30]], 0, atol=0.3)  # the straight line has -1.75


def test_two_keyframes_over_all_the_time_are_a_straight_line():
    np.testing.assert_allclose(Keyframes((0.0, 8.0), (7.0, 15.0)).eased(TIMES), 7 + TIMES, atol=1e-9)
