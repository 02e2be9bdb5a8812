"""`fql probe`: linear probes from frozen latents to the robot's and the objects' positions."""

from fql.pretraining.probe import probe_encoder
from scripts.probe_args import Probe


def run(args: Probe) -> None:
    """Print the table."""
    print(probe_encoder(args.encoder, args.dataset, args.data_dir, args.target, args.rows))
