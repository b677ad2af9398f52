"""Corpora: manifests of recordings, and voices that need no recordings."""
