"""Benchmarks of Cloudmanager and comparable tools, in one run on one machine: `make bench`."""
