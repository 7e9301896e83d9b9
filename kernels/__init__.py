"""Device code and what it needs to know of a device. It is imported as ``fusedrnn.kernels`` and imports nothing of the front end."""
