"""Built-in adapters: one folder a model."""

if __name__ != "scfm.adapters":
    raise ImportError(f"this package is scfm.adapters; it was imported as {__name__!r}")
