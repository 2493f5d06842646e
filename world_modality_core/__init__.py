"""What the idea is made of: encoders, latents, Prophet, memory and evidence. Nothing here imports the plugin."""

import logging

from world_modality_core.decoder_notice import DecoderNotice

# Here, since our commands, and LeRobot's with our plugin, import this package before they open a dataset.
logging.getLogger(DecoderNotice.LOGGER).addFilter(DecoderNotice())
