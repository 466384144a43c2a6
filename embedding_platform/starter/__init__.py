"""The built-in starter: a procedural world, small models trained on it, and sample media.

With it the whole platform runs on a laptop without the network: `world` draws pictures, sounds
and clips from seeds, `training` made the models in `weights/`, and `sample_media` writes a media
lake that they understand. They know shapes, colours, movements and tones and nothing else.
"""
