"""Random numbers for one sample's crop and flip.

NumPy's generators take 8 us to seed, and each of millions of images needs its own seed. This one needs no seeding.
"""

_MASK = (1 << 64) - 1


class Draws:
    """SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, figure 16)."""

    def __init__(self, seed: int) -> None:
        self._state = int(seed)  # NumPy's would overflow

    def random(self) -> float:
        """Uniform in [0, 1), 53 bits."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        return ((state ^ state >> 31) >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def integers(self, count: int) -> int:
        """Uniform in range(``count``), which is far below 2**53."""
        return int(count * self.random())
