"""The arguments of `fql benchmark update`."""

from dataclasses import dataclass
from typing import Literal

from fql.config import EncoderName
from fql.reports.tables import check_new
from scripts.shared_args import DataDir, JsonOut, check_positive


@dataclass(frozen=True)
class BenchmarkUpdate:
    """Time one update in every mode, in turns, and count its work.

    fql benchmark update --rounds 10 --json update.json
    fql benchmark update --against precision=bfloat16

    GFLOP and GB (read and written) are those that XLA counts in the compiled program, on one
    device. The peak is that of a product of two large matrices.
    """

    modes: tuple[Literal['reference', 'separate', 'plain', 'shared', 'frozen', 'latents'], ...] = (
        'reference',
        'separate',
        'plain',
        'shared',
        'frozen',
        'latents',
    )
    """reference: as the reference implementation computes an update (three encoders, XLA's max
    pooling, one update per call). separate, shared: --encoder-sharing. plain: shared, with XLA's
    own convolutions and max pooling. frozen: no gradient into the encoder; latents: the same on
    cached latents. The first one is what others are compared with."""
    against: tuple[str, ...] = ()
    """Compare two configurations instead: A as given here, B with these NAME=VALUE settings of
    fql train changed."""
    rounds: int = 10
    """How often the ways take turns; medians are reported."""
    batch_size: int = 256
    """As for fql train."""
    frame_stack: int = 3
    """As for fql train."""
    image_size: int = 64
    """Height and width of the images."""
    encoder: EncoderName = 'impala_small'
    """As for fql train."""
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """As for fql train."""
    precision: Literal['float32', 'bfloat16'] = 'float32'
    """As for fql train."""
    updates_per_call: int = 1
    """As for fql train."""
    json: JsonOut = None
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        check_new(self.json)
        check_positive(rounds=self.rounds)
