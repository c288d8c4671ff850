"""Rendering with the full model: windows, sampling, memory, the diffusers-style pipeline and the engine.  Needs torch."""
