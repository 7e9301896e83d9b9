"""Tests of the device library; most run it under the emulator."""
