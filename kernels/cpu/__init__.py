"""What recurrences compiled for the CPU stand on: `build` compiles and loads C++ sources, ``runtime.h`` is what they include."""
