"""Many jobs in parallel, each in a process under limits, on this machine or on a cluster."""
