"""Shapes of models, from a checkpoint's ``config.json`` or from the built-in catalogue. Pure."""
