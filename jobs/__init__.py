"""Run many jobs in parallel, each in a process with limits, on this machine or on a cluster."""
