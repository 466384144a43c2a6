"""Recognise, decode and cut media files. One module per modality; no torch here."""
