"""The samples' random numbers."""

import numpy as np

from pipeline.loader.splitmix import Draws


def test_the_numbers_are_splitmix64s() -> None:
    """Its outputs for the seed 1234567, as its authors' C code prints them (prng.di.unimi.it/splitmix64.c)."""
    draws = Draws(1234567)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [draws.random() for _ in expected] == [(number >> 11) / 2**53 for number in expected]


def test_numbers_of_neighbouring_seeds_are_uniform_and_independent() -> None:
    numbers = np.array(
        [[Draws(seed).random(), (draws := Draws(seed)).integers(7), draws.uniform(2, 4)] for seed in range(20_000)]
    )
    assert np.histogram(numbers[:, 0], 20, (0, 1))[0].std() < 60  # of 1,000 each: a standard deviation of 31
    assert np.bincount(numbers[:, 1].astype(int), minlength=7).std() < 100  # of 2,857
    assert numbers[:, 1].max() == 6
    assert 2 <= numbers[:, 2].min() < 2.01
    assert 3.99 < numbers[:, 2].max() < 4
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:, 1], numbers[:, 2])[0, 1]) < 0.03
