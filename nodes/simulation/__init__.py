"""The simulated world: network, disks, nodes, clients, faults, and the invariants they keep."""
