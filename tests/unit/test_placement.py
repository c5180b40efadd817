"""What a trial takes of a device."""

from hpsearch.raytune.placement import RESOLUTION, share_of


def test_as_many_trials_as_are_meant_to_share_a_device_fit_as_ray_counts():
    for per_device in range(1, 65):
        for whole in (1.0, 0.25):
            as_ray_counts = int(share_of(per_device, whole) * RESOLUTION + 0.5)  # its FixedPoint
            assert 0 < as_ray_counts * per_device <= whole * RESOLUTION, per_device
