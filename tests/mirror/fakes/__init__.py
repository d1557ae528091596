"""Servers that cannot be had here, held to transcripts of real ones; each is used by a client that is not ours, too."""
