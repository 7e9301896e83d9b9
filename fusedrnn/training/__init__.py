"""Training of the grapheme-to-phoneme model on CMUdict: `fusedrnn train g2p`."""
