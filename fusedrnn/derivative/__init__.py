"""The derivative of a loop, which is a loop: it runs the derivative of the step from the last step to the first."""
