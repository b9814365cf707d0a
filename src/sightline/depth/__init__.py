"""Depth images: normalisation, autoencoder, encoder, embeddings."""
