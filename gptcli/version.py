"""The version, which importing anything else does not need."""

VERSION = "0.1.0"
