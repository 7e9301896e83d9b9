"""Programs recorded from TensorFlow, and the same programs in PyTorch."""
