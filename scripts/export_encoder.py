"""`fql export-encoder`: the encoder of a run's checkpoint, written to a folder."""

from fql.pretraining.export_encoder import export_encoder
from scripts.export_encoder_args import ExportEncoder


def run(args: ExportEncoder) -> None:
    """Write the folder; say what is in it."""
    saved = export_encoder(args.run, args.step, args.out)
    print(
        f'{args.out}: {saved.encoder}, {saved.frame_stack} frame(s) of {saved.shape_text}, '
        f'{saved.objective} on {saved.dataset}, {saved.step:,} updates'
    )
