"""World latents on disk and in batches: companion, table, PCA, codebook, normaliser."""
