"""Who else does the work, each configured as its own documentation recommends. In: a work; out: its run, or `bench.case.Missing`."""
