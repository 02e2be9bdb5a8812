"""Images to latents: convolutional encoders."""
