"""Proofs of a finished bundle: its engines, and the way from pixel to answer."""

from runtime.verification.verify import EngineCheck, verify_bundle

__all__ = ["EngineCheck", "verify_bundle"]
