"""Rendering with the full model: windows, sampling, memory, the diffusers-style pipeline, the engine.  Needs torch."""
