"""The order of images and their random numbers: pure functions of (seed, epoch, position).

NOTE [ Positions ]
1. An epoch has one global order, a permutation of the training set. A *position* is an index into that order.
2. With G = micro batch × accumulation × ranks, step k takes the positions [k·G, (k+1)·G), however G is factorised.
   Micro batch m of rank r starts at (m·ranks + r)·micro_batch, so consecutive micro batches are consecutive in the
   global order, and so are the ranks within one.
3. Everything random about an image is drawn from (seed, epoch, position). So it does not depend on workers, processes
   or what ran before, and an epoch can be resumed in the middle.
4. The numbers are the raw words of Philox-4×64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
   SC 2011), a counter-based generator: the key is (seed, epoch), the counter (purpose, position). NumPy guarantees
   that this stream never changes, which it does not for `permutation` and the like, nor torch for `randperm`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ORDER, _AUGMENTATION, _LIGHTING = 0, 1, 2  # purposes: disjoint streams
_WORDS_PER_COUNT = 4


def _words(seed: int, epoch: int, purpose: int, first_count: int, num_counts: int) -> npt.NDArray[np.uint64]:
    """The Philox words of `num_counts` consecutive counters: (num_counts, 4)."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in 0 … 2**64 − 1, got {seed}")
    bits = np.random.Philox(key=seed + (epoch << 64), counter=(purpose << 192) + first_count)
    return bits.random_raw(num_counts * _WORDS_PER_COUNT).reshape(num_counts, _WORDS_PER_COUNT)


def shuffled(num_samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The global order of an epoch: a permutation of 0 … `num_samples` − 1, uniform up to 64-bit ties."""
    words = _words(seed, epoch, _ORDER, 0, -(-num_samples // _WORDS_PER_COUNT))
    return np.argsort(words.reshape(-1)[:num_samples], kind="stable").astype(np.int64)


def uniforms(
    seed: int, epoch: int, first_position: int, num_positions: int, num_draws: int
) -> npt.NDArray[np.float64]:
    """Random numbers in [0, 1) for the augmentation of consecutive positions.

    Returns:
        (num_positions, num_draws); a row depends on its position (and on `num_draws`), not on its neighbours.
    """
    counts = -(-num_draws // _WORDS_PER_COUNT)
    words = _words(seed, epoch, _AUGMENTATION, first_position * counts, num_positions * counts)
    rows = words.reshape(num_positions, counts * _WORDS_PER_COUNT)
    return (rows[:, :num_draws] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(seed: int, epoch: int, first_position: int, num_positions: int) -> npt.NDArray[np.float64]:
    """Three standard normal numbers for each of consecutive positions: (num_positions, 3).

    By the Box–Muller transform (1958).
    """
    words = _words(seed, epoch, _LIGHTING, first_position, num_positions)
    drawn = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log1p(-drawn[:, :2])), 2 * np.pi * drawn[:, 2:]
    return np.concatenate([radius * np.cos(angle), radius[:, :1] * np.sin(angle[:, :1])], axis=1)


@dataclass(frozen=True)
class Request:
    """What to fetch for one micro batch.

    Attributes:
        epoch: the epoch, for the random numbers.
        first_position: the position of row 0; row i's is `first_position` + i.
        indices: (N,) int64, sample numbers; −1 for padding.
    """

    epoch: int
    first_position: int
    indices: npt.NDArray[np.int64]

    @property
    def is_whole(self) -> bool:
        """Whether there is no padding."""
        return bool((self.indices >= 0).all())


@dataclass(frozen=True)
class Schedule:
    """Assigns positions to one rank. See NOTE [ Positions ].

    Training drops the samples after the last whole step, which differ from epoch to epoch. Evaluation gives each image
    to exactly one rank, and every rank the same number of batches of the same sizes, so that ranks that compute
    together never wait for one that has finished: the last batch is divided evenly, and the last ranks get padding
    (index −1) where it does not divide.
    """

    seed: int
    num_train: int
    num_test: int
    micro_batch_size: int
    accumulation: int
    eval_batch_size: int
    rank: int
    world_size: int

    @property
    def num_train_batches(self) -> int:
        """Micro batches per rank and epoch: floor(images / G) steps of `accumulation` each."""
        return self.num_train // self.global_batch_size * self.accumulation

    @property
    def global_batch_size(self) -> int:
        """Images per step: G = micro batch × accumulation × ranks."""
        return self.micro_batch_size * self.accumulation * self.world_size

    @property
    def num_test_batches(self) -> int:
        """Evaluation batches of each rank."""
        return -(-self.num_test // (self.eval_batch_size * self.world_size))

    def train(self, epoch: int, start: int = 0) -> Iterator[Request]:
        """This rank's micro batches of an epoch, from its micro batch `start` on."""
        order = shuffled(self.num_train, self.seed, epoch)
        for micro_batch in range(start, self.num_train_batches):
            first = (micro_batch * self.world_size + self.rank) * self.micro_batch_size
            yield Request(epoch, first, order[first : first + self.micro_batch_size])

    def test(self) -> Iterator[Request]:
        """This rank's evaluation batches."""
        for first in range(0, self.num_test, self.eval_batch_size * self.world_size):
            remaining = min(self.num_test - first, self.eval_batch_size * self.world_size)
            num_rows = -(-remaining // self.world_size)
            mine = self.rank * num_rows + np.arange(num_rows)
            indices = np.where(mine < remaining, first + mine, -1).astype(np.int64)
            yield Request(0, first + self.rank * num_rows, indices)
