"""How a step is laid out on a device. In: a step, a batch size, a device's limits; out: a plan, or why there is none."""
