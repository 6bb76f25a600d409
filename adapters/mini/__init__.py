"""mini: the small encoder that ships with scfm."""
