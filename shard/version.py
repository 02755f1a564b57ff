"""The version of cxr-simclr. setup.cfg reads it from here, and a test compares CITATION.cff with it."""

VERSION = "0.1.0"
