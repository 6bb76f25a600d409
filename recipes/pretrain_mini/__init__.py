"""Pre-trains `mini`, the encoder that ships with scfm, and evaluates it on held-out data: ``python -m scfm.recipes.pretrain_mini``."""
