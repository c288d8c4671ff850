"""animx animates a character: one picture and one driving video in, the character moving like the person out."""

__version__ = "0.1.0"
