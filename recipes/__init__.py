"""Runnable configurations: pre-training, fine-tuning, benchmarks."""

if __name__ != "scfm.recipes":
    raise ImportError(f"this package is scfm.recipes; it was imported as {__name__!r}")
